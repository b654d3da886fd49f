"""A random model in the place of the built-in one, and small inputs."""

import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltx_core.model.transformer.model import LTXModel


@pytest.fixture(autouse=True)
def _random_model(model_folder, monkeypatch):
    """The random model stands in for the built-in one: it is quicker."""
    monkeypatch.setenv("OPENLTX_MINIATURE", str(model_folder))


@pytest.fixture
def pass_counts(monkeypatch) -> list[int]:
    """How many passes each call of the transformer's end holds: they come one by one, or as a batch."""
    counts, finish = [], LTXModel.finish

    def counted(model, state):
        counts.append(len(state.hidden["video"]))
        return finish(model, state)

    monkeypatch.setattr(LTXModel, "finish", counted)
    return counts


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "picture.png"
    ramp = np.linspace(0, 255, 64 * 96 * 3).reshape(64, 96, 3).astype(np.uint8)
    Image.fromarray(ramp).save(path)
    return path


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    """Two seconds of a 440 Hz tone, mono, 22,050 Hz."""
    path = tmp_path_factory.mktemp("inputs") / "tone.wav"
    times = np.arange(2 * 22050) / 22050
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes((np.sin(2 * np.pi * 440 * times) * 9000).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """Nine frames of 96 x 64 at 12 a second, with sound."""
    import torch

    from ltx_core.types import Audio
    from ltx_pipelines.media.writer import encode_video

    path = tmp_path_factory.mktemp("inputs") / "clip.mp4"
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, 255, (9, 3, 4, 6), generator=generator).float()
    frames = torch.nn.functional.interpolate(coarse, (64, 96), mode="bilinear").permute(0, 2, 3, 1)
    noise = torch.randn(2, 36000, generator=generator) * 0.1
    encode_video(frames.to(torch.uint8), 12.0, Audio(noise, 48000), path)
    return path
