"""Asking Gemma to rewrite a prompt: chat text, image tokens and pixels, seeded sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ltx_core.errors import InputError

TEMPERATURE = 0.7
TOP_K = 50


def chat_text(tokenizer: Any, system: str, user: str | list[dict[str, str]]) -> str:
    """The conversation in the tokenizer's chat template, up to where the model is to answer.

    Raises `InputError` if the tokenizer has none.
    """
    if not tokenizer.chat_template:
        raise InputError(
            "This Gemma's tokenizer has no chat template, so it cannot rewrite prompts; use an "
            "instruction-tuned one (-it), or do not ask for prompt enhancement."
        )
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def insert_image(chat: str, tokenizer: Any, image_tokens: int) -> str:
    """The image mark of the chat template spelt out: begin of image, its soft tokens, end of image."""
    begin, soft, end = (_special(tokenizer, name) for name in ("boi_token", "image_token", "eoi_token"))
    return chat.replace(begin, f"\n\n{begin}{soft * image_tokens}{end}\n\n", 1)


def _special(tokenizer: Any, name: str) -> str:
    token = getattr(tokenizer, name, None)
    if token is None:
        raise InputError(f"This Gemma's tokenizer names no {name}; it cannot be shown images.")
    return token


@dataclass(frozen=True)
class ImageProcessor:
    """An image to the vision tower's input: squashed to `size` (height, width), scaled, normalised per channel.

    Pillow's bilinear filter, as transformers without torchvision does it.
    """

    size: tuple[int, int]
    rescale_factor: float = 1 / 255
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_config(cls, preprocessor: Mapping[str, Any], gemma: Mapping[str, Any]) -> ImageProcessor:
        """preprocessor: a parsed ``preprocessor_config.json``, or empty; gemma: a parsed Gemma ``config.json``."""
        side = gemma.get("vision_config", {}).get("image_size", 224)
        size = {"height": side, "width": side, **preprocessor.get("size", {})}
        given = {
            name: preprocessor[name]
            for name in ("rescale_factor", "image_mean", "image_std")
            if name in preprocessor
        }
        return cls((size["height"], size["width"]), **given)

    def __call__(self, image: Any) -> torch.Tensor:
        """image: uint8 (H, W, 3), tensor or array. Returns (1, 3, height, width) float32."""
        from PIL import Image

        pixels = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
        height, width = self.size
        resized = Image.fromarray(pixels[..., :3]).resize((width, height), Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(resized)).float() * self.rescale_factor
        normalised = (values - values.new_tensor(self.image_mean)) / values.new_tensor(self.image_std)
        return normalised.permute(2, 0, 1)[None]


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    chat: str,
    pixel_values: torch.Tensor | None,
    max_new_tokens: int,
    seed: int,
) -> torch.Tensor:
    """Ids (m,), m <= max_new_tokens, that the model answers: at temperature 0.7, from the 50 likeliest.

    The sequence begins with two <bos>, the template's and the tokenizer's, as in the official pipelines. The
    caller's random state is left as it was.
    """
    from transformers import GenerationConfig

    inputs: dict[str, torch.Tensor] = {
        "input_ids": torch.tensor([tokenizer(chat, verbose=False)["input_ids"]])
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if pixel_values is not None:
        inputs["pixel_values"] = pixel_values
        inputs["token_type_ids"] = (inputs["input_ids"] == model.config.image_token_index).long()
    settings = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    with _seeded(model.device, seed):
        ids = model.generate(**inputs, generation_config=settings)
    return ids[0, inputs["input_ids"].shape[1] :]


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers of `device` from `seed`; afterwards as before."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    module = torch.get_device_module(device)
    here = nullcontext() if device.index is None else module.device(device.index)
    with here, torch.random.fork_rng(devices=[device], device_type=device.type):
        module.manual_seed(seed)
        yield
