"""One thread for all tests, since what is compared bit for bit must not depend on the cores; a random model."""

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
