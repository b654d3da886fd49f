"""Prompt enhancement: what the model is asked, against transformers' own processor; seeds; images."""

import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx_core.errors import CheckpointError, InputError
from ltx_core.loader.gemma import load_text_encoder
from ltx_core.text_encoders.gemma.enhancement import ImageProcessor, chat_text, insert_image

SYSTEM = "Be brief."


@pytest.fixture(scope="module")
def image():
    return torch.randint(0, 255, (40, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_seed_decides_the_answer_and_the_callers_state_stays(encoder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (
        encoder.enhance_t2v("a ball", max_new_tokens=12, system_prompt=SYSTEM, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != other


def test_a_long_conversation_is_no_warning(gemma_root):
    encoder, records = load_text_encoder(gemma_root, dtype=torch.float32), []
    handler, logger = logging.Handler(), logging.getLogger("transformers")
    handler.emit = records.append
    logger.addHandler(handler)
    encoder.enhance_t2v("a ball " * 600, max_new_tokens=1, system_prompt=SYSTEM)
    logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []


def test_conversation(encoder):
    tokenizer = encoder.tokenizer.tokenizer
    expected = "<bos><start_of_turn>user\nBe brief.\n\nuser prompt: x<end_of_turn>\n<start_of_turn>model\n"
    assert chat_text(tokenizer, SYSTEM, "user prompt: x") == expected


def test_image_becomes_its_soft_tokens(encoder):
    tokenizer = encoder.tokenizer.tokenizer
    chat = insert_image("a<start_of_image>b<start_of_image>", tokenizer, 2)
    soft = "<image_soft_token>" * 2
    assert chat == f"a\n\n<start_of_image>{soft}<end_of_image>\n\nb<start_of_image>"


def test_vision_tower_is_loaded_by_the_first_image(gemma_root, image):
    encoder = load_text_encoder(gemma_root, dtype=torch.float32)
    answers = [
        encoder.enhance_i2v("it turns", picture, max_new_tokens=12, system_prompt=SYSTEM)
        for picture in (image, image, 255 - image)
    ]
    assert encoder.model.model.vision_tower is not None
    assert answers[0] == answers[1]
    eager = load_text_encoder(gemma_root, dtype=torch.float32, with_vision=True)
    assert eager.enhance_i2v("it turns", image, max_new_tokens=12, system_prompt=SYSTEM) == answers[0]


def test_image_reaches_the_model(gemma_root, image):
    """The logits after the picture depend on the picture."""
    encoder = load_text_encoder(gemma_root, dtype=torch.float32, with_vision=True)
    tokenizer = encoder.tokenizer.tokenizer
    ids = torch.tensor([tokenizer(insert_image("<start_of_image> what?", tokenizer, 4))["input_ids"]])
    model = encoder.model.as_transformers()
    logits = [
        model(
            input_ids=ids,
            pixel_values=encoder.processor(picture),
            token_type_ids=(ids == model.config.image_token_index).long(),
        ).logits[0, -1]
        for picture in (image, 255 - image)
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_encoder_without_vision_says_so(gemma_root, image):
    encoder = load_text_encoder(gemma_root)
    encoder.vision_loader = None
    with pytest.raises(InputError, match="without a vision tower"):
        encoder.enhance_i2v("it turns", image)


def test_tokenizer_without_chat_template_says_so(gemma_root, tmp_path):
    folder = shutil.copytree(gemma_root, tmp_path / "gemma")
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"chat_template"', '"unused"'))
    with pytest.raises(InputError, match="no chat template"):
        load_text_encoder(folder).enhance_t2v("a ball")


def test_pixels_are_squashed_and_normalised():
    processor = ImageProcessor((2, 4))
    image = np.zeros((6, 6, 3), dtype=np.uint8)
    image[..., 0] = 255
    pixels = processor(image)
    assert pixels.shape == (1, 3, 2, 4)
    assert pixels[:, 0].eq(1).all()
    assert pixels[:, 1:].eq(-1).all()


def test_pixels_do_not_follow_the_callers_defaults(strange_defaults):
    image = np.arange(108, dtype=np.uint8).reshape(6, 6, 3)
    processor = ImageProcessor((2, 4), image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))
    expected = processor(image)
    with strange_defaults():
        assert torch.equal(processor(image), expected)


def test_processor_reads_the_folder_or_takes_the_towers_size(encoder):
    gemma = encoder.model.config
    assert ImageProcessor.from_config({}, gemma).size == (56, 56)
    read = ImageProcessor.from_config({"size": {"height": 8, "width": 6}, "image_std": [1, 1, 1]}, gemma)
    assert (read.size, read.image_std, read.image_mean) == ((8, 6), [1, 1, 1], (0.5, 0.5, 0.5))


def test_default_instructions(encoder):
    for text in (encoder.default_gemma_t2v_system_prompt, encoder.default_gemma_i2v_system_prompt):
        assert 300 < len(text.split()) < 800
        assert "present progressive" in text
        assert text.isascii()


def test_a_vision_tower_that_cannot_be_read_leaves_the_encoder_usable(gemma_root, tmp_path, image):
    folder = shutil.copytree(gemma_root, tmp_path / "gemma")
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if "vision" not in k}
    save_file(tensors, folder / "model.safetensors")
    encoder = load_text_encoder(folder, dtype=torch.float32)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="lacks"):
            encoder.enhance_i2v("it turns", image, system_prompt=SYSTEM)
    assert isinstance(encoder.enhance_t2v("a ball", max_new_tokens=4, system_prompt=SYSTEM), str)
