"""What the rows measure: each function returns the scores of a file, from its pixels and waveform alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ltx_core.errors import InputError
from ltx_pipelines.media.video import decode_video_from_file
from ltx_trainer.evaluate.case import Case, Made, Scores
from ltx_trainer.oracle import Verdict, Wanted, compare, judge_file, measure, overlap, sensible_path
from ltx_trainer.oracle.hearing import listen
from ltx_trainer.world.vocabulary import NIGHT

PERFECT = 100.0  # dB that equal pictures get
SEMITONE = 1 / 12  # octaves by which a pitch may be off
SEEN = ("shape", "colour", "background", "motion")

Measure = Callable[[Made, Case], Scores]


def attributes(made: Made, case: Case) -> Scores:
    """What is right of what the caption states; "all": every attribute; "offset": of sound from sight, seconds."""
    return _scores(judge_file(made.path, Wanted.of(case.asked)))


def at_night(made: Made, case: Case) -> Scores:
    """Like `attributes`, with the wall that the style LoRA draws; "style": whether it is there."""
    scores = _scores(judge_file(made.path, replace(Wanted.of(case.asked), background=NIGHT)))
    return {**scores, "style": scores["background"]}


def first_frame(made: Made, case: Case) -> Scores:
    """`attributes`, and how like the given picture the first frame is."""
    return {**attributes(made, case), "psnr": _psnr_at(made, case, [0])}


def path_between(indices: Callable[[Case], Sequence[int]]) -> Measure:
    """`attributes`, how like the given pictures the frames there are, and whether the way between is sensible."""

    def measured(made: Made, case: Case) -> Scores:
        verdict = judge_file(made.path, Wanted.of(case.asked))
        path = sensible_path(verdict.measured, case.truth, indices(case))
        return {**_scores(verdict), "psnr": _psnr_at(made, case, indices(case)), "path": path}

    return measured


def impacts_as_given(made: Made, case: Case) -> Scores:
    """`attributes`, with "impacts": seen when they are in the given sound."""
    return _scores(judge_file(made.path, Wanted.of(case.asked, onsets=True)))


def follows_inside(first: Callable[[Case], int], changed: Callable[[int], str]) -> Measure:
    """Whether the frames from `first` on show what the caption states; by what was changed, too.

    A motion is told from the whole clip, since it is that from the first frame on.
    """

    def measured(made: Made, case: Case) -> Scores:
        attribute, wanted = changed(case.number), Wanted.of(case.asked)
        start = 0 if attribute == "motion" else first(case)
        fps = case.world.config.fps
        right = compare(measure(read_frames(made.path)[start:], fps, None, 16_000), wanted, fps).right
        asked = [name for name in SEEN if name in right and (name != "motion" or attribute == "motion")]
        inside = all(right[name] for name in asked)
        return {**made.facts, "inside": inside, f"{attribute} inside": inside}

    return measured


def follows_control(made: Made, case: Case) -> Scores:
    """`attributes`, with the overlap of the object with that of the control clip."""
    verdict = judge_file(made.path, Wanted.of(case.asked))
    mask = case.world.masks([case.truth])[0]
    return {**_scores(verdict), "overlap": overlap(verdict.measured.cover, mask)}


def reconstruction(made: Made, case: Case) -> Scores:
    """Whether onsets and pitch of the sound, and its class, are those of the original; and the facts."""
    clip, rate = case.clip, case.world.config.sample_rate
    heard = listen(clip.audio, rate)
    verdict = judge_file(made.path, Wanted.of(case.truth, stated_only=False, onsets=True))
    pitch = same_pitch(verdict.measured.heard.pitch, heard.pitch)
    onset = verdict.right["onsets"]
    sound = verdict.measured.sound == heard.sound
    return {**made.facts, "onset": onset, "pitch": pitch, "sound": sound, "kept": onset and pitch}


def same_pitch(one: float | None, other: float | None) -> bool:
    """Whether two pitches in Hz are less than a semitone apart, or both none."""
    if one is None or other is None:
        return one is other
    return abs(math.log2(one / other)) < SEMITONE


def psnr(frames: Tensor, given: Tensor) -> float:
    """Likeness of uint8 pictures of one shape in dB, from the mean squared error over all; at most `PERFECT`.

    Raises `InputError` for pictures of different shapes.
    """
    if frames.shape != given.shape:
        raise InputError(
            f"Pictures of {tuple(frames.shape)} and {tuple(given.shape)} cannot be compared; "
            "generate them in the same size."
        )
    error = float((frames.double() - given.double()).square().mean())
    return min(PERFECT, 10 * math.log10(255**2 / error)) if error else PERFECT


def read_frames(path: Path) -> Tensor:
    """All frames of a file, uint8 (F, H, W, 3)."""
    return torch.cat(list(decode_video_from_file(path)))


def _psnr_at(made: Made, case: Case, indices: Sequence[int]) -> float:
    """Mean over frames."""
    frames, given = read_frames(made.path), case.clip.keyframes(indices)
    return float(np.mean([psnr(frames[index], picture) for index, picture in zip(indices, given)]))


def _scores(verdict: Verdict) -> Scores:
    right = {name: ok for name, ok in verdict.right.items() if name not in ("impacts", "onsets")}
    scores: Scores = dict(verdict.right)
    scores["all"] = all(ok for name, ok in right.items() if name != "synchrony")
    if verdict.offsets:
        scores["offset"] = float(np.mean(np.abs(verdict.offsets)))
    return scores
