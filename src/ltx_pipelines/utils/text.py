"""Prompts to contexts: encoding, and rewriting by the text encoder's own language model."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch

from ltx_core.text_encoders.gemma import EmbeddingsProcessorOutput
from ltx_pipelines.media.images import decode_image, resize_aspect_ratio_preserving
from ltx_pipelines.utils.prompts import ENHANCEMENT_SEED, clean_response

log = logging.getLogger(__name__)

TOGETHER = 2  # texts that are encoded at once: the weights are read, or brought to the device, once for both


@torch.no_grad()
def encode_prompts(
    prompts: Iterable[str],
    model_ledger: Any,
    *,
    enhance_prompt_image: str | None = None,
    enhance_prompt_seed: int = ENHANCEMENT_SEED,
    enhance_first_prompt: bool = False,
) -> list[EmbeddingsProcessorOutput]:
    """Video and audio contexts of each prompt.

    model_ledger: anything with ``text_encoder()`` and ``gemma_embeddings_processor()``. With
    `enhance_first_prompt` the first prompt is rewritten before, looking at `enhance_prompt_image` if given.
    """
    texts = list(prompts)
    encoder = model_ledger.text_encoder()
    if enhance_first_prompt and texts:
        texts[0] = generate_enhanced_prompt(encoder, texts[0], enhance_prompt_image, seed=enhance_prompt_seed)
    return encode_texts(texts, encoder, model_ledger.gemma_embeddings_processor())


def encode_texts(texts: Iterable[str], encoder: Any, processor: Any) -> list[EmbeddingsProcessorOutput]:
    """Contexts of each text; a prompt and its negative are encoded together, without most of their padding.

    An encoder or a processor that can only do whole prompts, as the official ones, gets one at a time.
    """
    if not (hasattr(encoder, "encode_valid") and hasattr(processor, "process_valid")):
        return [processor.process_hidden_states(*encoder.encode(text)) for text in texts]
    waiting, found = list(texts), []
    while waiting:
        together, waiting = waiting[:TOGETHER], waiting[TOGETHER:]
        output = processor.process_valid(*encoder.encode_valid(*together))
        found += [_row(output, index) for index in range(len(together))]
    return found


def _row(output: EmbeddingsProcessorOutput, index: int) -> EmbeddingsProcessorOutput:
    """One text's part of a batch, which then can go."""
    row = slice(index, index + 1)
    audio = None if output.audio_encoding is None else output.audio_encoding[row].clone()
    return output._replace(
        video_encoding=output.video_encoding[row].clone(),
        audio_encoding=audio,
        attention_mask=output.attention_mask[row].clone(),
    )


def generate_enhanced_prompt(
    text_encoder: Any,
    prompt: str,
    image_path: str | None = None,
    image_long_side: int = 896,
    seed: int = ENHANCEMENT_SEED,
) -> str:
    """`prompt` rewritten in the detail the model was trained on; with an image, as its continuation."""
    if image_path is None:
        answer = text_encoder.enhance_t2v(prompt, seed=seed)
    else:
        image = resize_aspect_ratio_preserving(torch.as_tensor(decode_image(image_path)), image_long_side)
        answer = text_encoder.enhance_i2v(prompt, image, seed=seed)
    log.info("Enhanced prompt: %s", answer)
    return clean_response(answer)
