"""A tiny Gemma folder, and what transformers itself makes of it."""

from pathlib import Path

import pytest
import torch

from ltx_core.loader.gemma import load_text_encoder
from ltx_core.text_encoders.gemma import GemmaTextEncoder
from ltx_pipelines.miniature.gemma import write_tiny_gemma


@pytest.fixture(scope="session")
def gemma_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="session")
def encoder(gemma_root: Path) -> GemmaTextEncoder:
    return load_text_encoder(gemma_root, "cpu", torch.float32)
