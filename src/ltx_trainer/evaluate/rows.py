"""The rows: which prompts, what is generated from them, what is measured in it."""

from __future__ import annotations

from dataclasses import dataclass

from ltx_trainer.evaluate import generate, measure
from ltx_trainer.evaluate.case import Prompts
from ltx_trainer.evaluate.generate import Generate
from ltx_trainer.evaluate.measure import Measure
from ltx_trainer.world.vocabulary import MOTIONS


@dataclass(frozen=True)
class Row:
    """prompts: what is asked for. limit: of the number of prompts. loras: those that it needs. needs: rows that
    it is compared with."""

    name: str
    prompts: Prompts
    generate: Generate
    measure: Measure
    limit: int | None = None
    loras: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def count(self, prompts: int) -> int:
        """How many prompts it takes when `prompts` are asked for."""
        return prompts if self.limit is None else min(prompts, self.limit)


ANY = Prompts()
BOUNCING = Prompts(motions=("bounce",), stated=("motion",), impacts=True)
UNSEEN = Prompts(split="unseen", stated=("shape", "colour", "motion"))
COLOURED = Prompts(stated=("colour",))
OFTEN_BOUNCING = Prompts(motions=(*MOTIONS, *("bounce",) * 8), stated=("motion",))
RETAKEN = Prompts(changed=("colour", "motion"))

SETTINGS = {
    "none": (),
    "CFG": ("CFG",),
    "CFG + STG": ("CFG", "STG"),
    "CFG + modality": ("CFG", "modality"),
    "all": generate.GUIDANCE,
}
GUIDANCE_PROMPTS = 50

_ROWS = (
    Row("text-to-video", ANY, generate.from_text, measure.attributes),
    Row("impacts", BOUNCING, generate.from_text, measure.attributes),
    Row("unseen", UNSEEN, generate.from_text, measure.attributes),
    Row("image-to-video", ANY, generate.from_image, measure.first_frame),
    Row("keyframes", ANY, generate.from_keyframes, measure.path_between(generate.keyframes)),
    Row("audio-to-video", BOUNCING, generate.to_sound, measure.impacts_as_given),
    Row(
        "retake",
        RETAKEN,
        generate.retaken,
        measure.follows_inside(generate.first_retaken, RETAKEN.changed_in),
    ),
    Row("ic-lora", COLOURED, generate.controlled, measure.follows_control, loras=("ic-lora-outline",)),
    Row("distilled", ANY, generate.distilled, measure.attributes, needs=("text-to-video",)),
    Row("reconstruction", OFTEN_BOUNCING, generate.reconstructed, measure.reconstruction),
    Row("style-lora", ANY, generate.styled, measure.at_night, loras=("style-night",)),
    *(
        Row(
            f"guidance: {setting}",
            OFTEN_BOUNCING,
            generate.with_guidance(kinds),
            measure.attributes,
            limit=GUIDANCE_PROMPTS,
        )
        for setting, kinds in SETTINGS.items()
    ),
)
ROWS = {row.name: row for row in _ROWS}
