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
    "function",
    [
        helpers.combined_image_conditionings,
        helpers.image_conditionings_by_replacing_latent,
        helpers.image_conditionings_by_adding_guiding_latent,
    ],
)
def test_plain_tuples_are_images_too(function, picture):
    named = [ImageConditioningInput(str(picture), 0, 1.0, 0), ImageConditioningInput(str(picture), 1, 0.5)]
    plain = [(str(picture), 0, 1.0, 0), (str(picture), 1, 0.5)]
    first, second = (function(images, 32, 64, lambda x: x, torch.float32, "cpu") for images in (named, plain))
    assert [type(item) for item in first] == [type(item) for item in second]
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
        return SimpleNamespace(encode=encoder.encode, enhance_t2v=lambda prompt, seed: f"1. {prompt} {seed}")

    def gemma_embeddings_processor(self):
        processor = self.ledger.gemma_embeddings_processor()
        return SimpleNamespace(process_hidden_states=processor.process_hidden_states)


def test_text_encoders_of_ones_own_need_the_official_methods_alone(model_folder):
    files = [str(model_folder / name) for name in ("model.safetensors", "gemma")]
    ledger = ModelLedger(torch.float32, "cpu", *files)
    with torch.no_grad():
        got = helpers.encode_prompts(["a ball", ""], WholePrompts(ledger), enhance_first_prompt=True)
    for one, other in zip(got, helpers.encode_prompts(["a ball 42", ""], ledger), strict=True):
        torch.testing.assert_close(one, other)


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
