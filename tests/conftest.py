"""One thread for all tests, since what is compared bit for bit must not depend on the cores; a random model."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from ltx_pipelines.miniature import random_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """Files of a complete tiny model in the official format: model, gemma, upsampler, distilled LoRA."""
    folder = tmp_path_factory.mktemp("model")
    random_model.write_random_model(folder)
    return folder


@pytest.fixture
def strange_defaults() -> Callable[[], AbstractContextManager[None]]:
    """A context in which new tensors are bfloat16, and nowhere, unless they are told otherwise."""

    @contextmanager
    def context() -> Iterator[None]:
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("meta"):
                yield
        finally:
            torch.set_default_dtype(torch.float32)

    return context
