"""The official helper functions where no recording covers them."""

import io
import sys
from types import SimpleNamespace

import pytest
import torch

from ltx_core.loader import Checkpoint, StateDictRegistry
from ltx_pipelines.progress import progress
from ltx_pipelines.utils import ModelLedger, helpers
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.model_ledger import COMPONENTS
from ltx_pipelines.utils.prompts import clean_response


@pytest.mark.parametrize(
    ("fancy", "plain"),
    [
        ("\u2018a\u2019 b\u2032", "a' b'"),
        ("x \u201cy\u201d", 'x "y"'),
        ("a\u2013b\u2014c\u22121", "a-b-c-1"),
        ("A\u00a0red\u00a0ball", "A red ball"),
        ("1.\u00a0**Style:** x", "Style:** x"),
        ("\u00e9t\u00e9 2", "\u00e9t\u00e9 2"),
        ("123", "123"),
    ],
)
def test_answers_become_plain_text(fancy, plain):
    assert clean_response(fancy) == plain


@pytest.mark.parametrize(
    ("function", "places"),
    [
        (helpers.combined_image_conditionings, [("latent_idx", 0), ("frame_idx", 1)]),
        (helpers.image_conditionings_by_replacing_latent, [("latent_idx", 0), ("latent_idx", 1)]),
        (helpers.image_conditionings_by_adding_guiding_latent, [("frame_idx", 0), ("frame_idx", 1)]),
    ],
)
def test_images_go_where_they_belong_and_may_be_plain_tuples(function, places, picture):
    named = [ImageConditioningInput(str(picture), 0, 1.0, 0), ImageConditioningInput(str(picture), 1, 0.5)]
    plain = [(str(picture), 0, 1.0, 0), (str(picture), 1, 0.5)]
    first, second = (function(images, 32, 64, lambda x: x, torch.float32, "cpu") for images in (named, plain))
    assert [type(item) for item in first] == [type(item) for item in second]
    assert [getattr(item, name) for item, (name, _) in zip(first, places)] == [place for _, place in places]
    assert [item.strength for item in first] == [1.0, 0.5]
    for one, other in zip(first, second):
        tensors = [t for t in vars(one).values() if isinstance(t, torch.Tensor)]
        assert tensors
        assert all(
            map(torch.equal, tensors, (t for t in vars(other).values() if isinstance(t, torch.Tensor)))
        )
        assert one.strength == other.strength


class WholePrompts:
    """A ledger whose encoder and processor have the official methods alone."""

    def __init__(self, ledger):
        self.ledger = ledger

    def text_encoder(self):
        encoder = self.ledger.text_encoder()
        return SimpleNamespace(
            encode=encoder.encode,
            enhance_t2v=lambda prompt, seed: f"1. {prompt} {seed}",
            enhance_i2v=lambda prompt, image, seed: f"1. {prompt} {seed} {'x'.join(map(str, image.shape))}",
        )

    def gemma_embeddings_processor(self):
        processor = self.ledger.gemma_embeddings_processor()
        return SimpleNamespace(process_hidden_states=processor.process_hidden_states)


def test_text_encoders_of_ones_own_need_the_official_methods_alone(model_folder, picture):
    files = [str(model_folder / name) for name in ("model.safetensors", "gemma")]
    ledger = ModelLedger(torch.float32, "cpu", *files)
    for image, seen in ((None, ""), (str(picture), " 597x896x3")):
        with torch.no_grad():
            got = helpers.encode_prompts(
                ["a ball", ""],
                WholePrompts(ledger),
                enhance_first_prompt=True,
                enhance_prompt_image=image,
            )
        for one, other in zip(got, helpers.encode_prompts([f"a ball 42{seen}", ""], ledger), strict=True):
            torch.testing.assert_close(one, other)


def test_a_ledger_with_other_loras_is_another_one(model_folder):
    lora = str(model_folder / "distilled-lora.safetensors")
    plain = ModelLedger(torch.float32, "cpu", str(model_folder / "model.safetensors"))
    once = plain.with_loras([(lora, 0.5)])
    twice = once.with_additional_loras([(lora, 0.25)])
    paired = [[(item.path, item.strength) for item in ledger.loras] for ledger in (plain, once, twice)]
    assert paired == [[], [(lora, 0.5)], [(lora, 0.5), (lora, 0.25)]]
    weights = [
        ledger.transformer().velocity_model.transformer_blocks[0].attn1.to_q.weight
        for ledger in (plain, once, twice)
    ]
    assert not torch.equal(weights[0], weights[1])
    assert torch.allclose(weights[2] - weights[0], 1.5 * (weights[1] - weights[0]), atol=1e-6)


@pytest.mark.parametrize(("terminal", "notebook", "shown"), [(1, 0, 1), (0, 0, 0), (0, 1, 1)])
def test_bars_are_shown_where_somebody_sees_them(terminal, notebook, shown, monkeypatch):
    class Stream(io.StringIO):
        def isatty(self):
            return bool(terminal)

    monkeypatch.setattr("sys.stderr", stream := Stream())
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert list(progress(range(3), desc="stage 1", file=stream)) == [0, 1, 2]
    assert ("stage 1: 100%" in stream.getvalue()) == bool(shown)


@pytest.mark.parametrize("component", [*COMPONENTS, "text_encoder"])
def test_a_ledger_builds_components_in_eval_mode(component, model_folder):
    files = [model_folder / name for name in ("model.safetensors", "gemma", "upsampler.safetensors")]
    module = getattr(ModelLedger(torch.float32, "cpu", *map(str, files)), component)()
    assert not any(part.training for part in module.modules())


@pytest.mark.parametrize("component", [*COMPONENTS, "text_encoder"])
def test_a_ledger_with_a_registry_reads_its_files_once(component, model_folder, monkeypatch):
    files = [model_folder / name for name in ("model.safetensors", "gemma", "upsampler.safetensors")]
    expected = getattr(ModelLedger(torch.float32, "cpu", *map(str, files)), component)()
    ledger = ModelLedger(torch.float32, "cpu", *map(str, files), registry=StateDictRegistry())
    getattr(ledger, component)()
    monkeypatch.setattr(Checkpoint, "read", None)
    again = getattr(ledger.with_loras(()), component)()
    for name, value in expected.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
