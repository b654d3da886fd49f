"""State-dict operations: which keys of a file belong to a component, and what they are called inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class ContentMatching:
    """Keeps keys that start with `prefix` and end with `suffix`."""

    prefix: str = ""
    suffix: str = ""

    def matches(self, key: str) -> bool:
        return key.startswith(self.prefix) and key.endswith(self.suffix)


@dataclass(frozen=True)
class ContentReplacement:
    """Replaces every occurrence of `content`."""

    content: str
    replacement: str


class KeyValueOperationResult(NamedTuple):
    """One tensor that a key-value operation yields, under its final name."""

    new_key: str
    new_value: torch.Tensor


KeyValueOperation = Callable[[str, torch.Tensor], list[KeyValueOperationResult]]


@dataclass(frozen=True)
class SDKeyValueOperation:
    """A function of (renamed key, tensor) for the keys that `key_matcher` matches."""

    key_matcher: ContentMatching
    kv_operation: KeyValueOperation


Entry = ContentMatching | ContentReplacement | SDKeyValueOperation


@dataclass(frozen=True)
class SDOps:
    """An immutable list of operations on a state dict, applied while it is read.

    A key is kept if some `with_matching` entry matches it as it stands in the file; then all replacements
    run in order; then the first matching key-value operation decides what becomes of the tensor.
    """

    name: str
    mapping: tuple[Entry, ...] = ()

    def with_replacement(self, content: str, replacement: str) -> SDOps:
        """A copy that also replaces every `content` in a kept key by `replacement`."""
        return self._with(ContentReplacement(content, replacement))

    def with_matching(self, prefix: str = "", suffix: str = "") -> SDOps:
        """A copy that also keeps keys with this prefix and suffix."""
        return self._with(ContentMatching(prefix, suffix))

    def with_kv_operation(
        self, operation: KeyValueOperation, key_prefix: str = "", key_suffix: str = ""
    ) -> SDOps:
        """A copy that also applies `operation` to renamed keys with this prefix and suffix."""
        return self._with(SDKeyValueOperation(ContentMatching(key_prefix, key_suffix), operation))

    def chain(self, other: SDOps) -> SDOps:
        """Both lists of operations, one after the other."""
        return SDOps(f"sd_ops_chain_{self.name}+{other.name}", self.mapping + other.mapping)

    def split(self) -> tuple[SDOps, SDOps]:
        """What becomes of keys, and then, for keys that are renamed already, what becomes of their tensors."""
        tensors = tuple(entry for entry in self.mapping if isinstance(entry, SDKeyValueOperation))
        if not tensors:
            return self, SDOps(self.name).with_matching()
        keys = tuple(entry for entry in self.mapping if not isinstance(entry, SDKeyValueOperation))
        return SDOps(f"{self.name} (keys)", keys), SDOps(self.name, (ContentMatching(), *tensors))

    def apply_to_key(self, key: str) -> str | None:
        """The name inside the module, or None if no matching entry keeps the key."""
        if not any(isinstance(entry, ContentMatching) and entry.matches(key) for entry in self.mapping):
            return None
        for entry in self.mapping:
            if isinstance(entry, ContentReplacement):
                key = key.replace(entry.content, entry.replacement)
        return key

    def apply_to_key_value(self, key: str, value: torch.Tensor) -> list[KeyValueOperationResult]:
        """The tensors that a renamed key yields: none, one or several, with their final names."""
        for entry in self.mapping:
            if isinstance(entry, SDKeyValueOperation) and entry.key_matcher.matches(key):
                return entry.kv_operation(key, value)
        return [KeyValueOperationResult(key, value)]

    def _with(self, entry: Entry) -> SDOps:
        return replace(self, mapping=(*self.mapping, entry))


def _prefixes(name: str, table: dict[str, str]) -> SDOps:
    """Keep the keys with these prefixes and rename the prefixes."""
    ops = SDOps(name)
    for prefix, replacement in table.items():
        ops = ops.with_matching(prefix=prefix)
        if prefix != replacement:
            ops = ops.with_replacement(prefix, replacement)
    return ops


def _strip(*prefixes: str) -> KeyValueOperation:
    """Remove each prefix once, in this order, where the key has it."""

    def operation(key: str, value: torch.Tensor) -> list[KeyValueOperationResult]:
        for prefix in prefixes:
            key = key.removeprefix(prefix)
        return [KeyValueOperationResult(key, value)]

    return operation


def _tie_embedding(key: str, value: torch.Tensor) -> list[KeyValueOperationResult]:
    """Gemma's output layer is its token embedding; the file holds it once."""
    return [KeyValueOperationResult(key, value), KeyValueOperationResult("model.lm_head.weight", value)]


LTXV_MODEL_COMFY_RENAMING_MAP = _prefixes("LTXV_MODEL_COMFY_PREFIX_MAP", {"model.diffusion_model.": ""})


def _dropped(key: str, value: torch.Tensor) -> list[KeyValueOperationResult]:
    return []


# The same without the connectors, which have the transformer's prefix and belong to the text side.
TRANSFORMER_KEYS = replace(LTXV_MODEL_COMFY_RENAMING_MAP, name="TRANSFORMER_KEYS")
for _stream in ("video_", "audio_", ""):
    TRANSFORMER_KEYS = TRANSFORMER_KEYS.with_kv_operation(_dropped, f"{_stream}embeddings_connector.")

_AUDIO_ONLY_WORDS = (
    "audio_attn1",
    "audio_attn2",
    "audio_ff",
    "audio_patchify",
    "audio_proj_out",
    "audio_adaln_single",
    "audio_prompt",
    "audio_scale_shift_table",
    "audio_caption_projection",
)


def _audio_only(key: str, value: torch.Tensor) -> list[KeyValueOperationResult]:
    return [KeyValueOperationResult(key, value)] if any(word in key for word in _AUDIO_ONLY_WORDS) else []


LTXV_AUDIO_ONLY_MODEL_COMFY_RENAMING_MAP = _prefixes(
    "LTXV_AUDIO_ONLY_MODEL_COMFY_PREFIX_MAP", {"model.diffusion_model.": ""}
).with_kv_operation(_audio_only)

# A file of its own may leave out the prefix of the whole checkpoint.
_STATISTICS = {f"{prefix}per_channel_statistics.": "per_channel_statistics." for prefix in ("vae.", "")}
VAE_ENCODER_COMFY_KEYS_FILTER = _prefixes(
    "VAE_ENCODER_COMFY_KEYS_FILTER", {"vae.encoder.": "", "encoder.": ""} | _STATISTICS
)
VAE_DECODER_COMFY_KEYS_FILTER = _prefixes(
    "VAE_DECODER_COMFY_KEYS_FILTER", {"vae.decoder.": "", "decoder.": ""} | _STATISTICS
)
AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER = _prefixes(
    "AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER",
    {"audio_vae.encoder.": "", "audio_vae.per_channel_statistics.": "per_channel_statistics."},
)
AUDIO_VAE_DECODER_COMFY_KEYS_FILTER = _prefixes(
    "AUDIO_VAE_DECODER_COMFY_KEYS_FILTER",
    {"audio_vae.decoder.": "", "audio_vae.per_channel_statistics.": "per_channel_statistics."},
)
VOCODER_COMFY_KEYS_FILTER = (
    SDOps("VOCODER_COMFY_KEYS_FILTER")
    .with_matching(prefix="vocoder.")
    .with_kv_operation(_strip("vocoder."), key_prefix="vocoder.")
)

_PROJECTIONS = ("aggregate_embed", "video_aggregate_embed", "audio_aggregate_embed")
EMBEDDINGS_PROCESSOR_KEY_OPS = _prefixes(
    "EMBEDDINGS_PROCESSOR_KEY_OPS",
    {f"text_embedding_projection.{name}.": f"feature_extractor.{name}." for name in _PROJECTIONS}
    | {
        "model.diffusion_model.video_embeddings_connector.": "video_connector.",
        "model.diffusion_model.audio_embeddings_connector.": "audio_connector.",
    },
)
VIDEO_ONLY_EMBEDDINGS_PROCESSOR_KEY_OPS = _prefixes(
    "VIDEO_ONLY_EMBEDDINGS_PROCESSOR_KEY_OPS",
    {f"text_embedding_projection.{name}.": f"feature_extractor.{name}." for name in _PROJECTIONS[:2]}
    | {"model.diffusion_model.embeddings_connector.": "embeddings_processor.video_connector."},
)
GEMMA_LLM_KEY_OPS = _prefixes(
    "GEMMA_LLM_KEY_OPS",
    {
        "language_model.model.": "model.model.language_model.",
        "vision_tower.": "model.model.vision_tower.",
        "multi_modal_projector.": "model.model.multi_modal_projector.",
    },
).with_kv_operation(_tie_embedding, key_prefix="model.model.language_model.embed_tokens.weight")

# The parts of a Gemma folder. Its keys come in two layouts, of older and of newer releases of transformers.
GEMMA_LANGUAGE_MODEL_KEYS = (
    SDOps("GEMMA_LANGUAGE_MODEL_KEYS")
    .with_matching(prefix="language_model.model.")
    .with_matching(prefix="model.language_model.")
    .with_kv_operation(_strip("model.", "language_model.", "model."))
)
GEMMA_VISION_TOWER_KEYS = (
    SDOps("GEMMA_VISION_TOWER_KEYS")
    .with_matching(prefix="vision_tower.")
    .with_matching(prefix="model.vision_tower.")
    .with_kv_operation(_strip("model.", "vision_tower.", "vision_model."))
)
GEMMA_PROJECTOR_KEYS = (
    SDOps("GEMMA_PROJECTOR_KEYS")
    .with_matching(prefix="multi_modal_projector.")
    .with_matching(prefix="model.multi_modal_projector.")
    .with_kv_operation(_strip("model.", "multi_modal_projector."))
)
DURATION_HEAD_KEY_OPS = _prefixes("DURATION_HEAD_KEY_OPS", {"duration_head.": ""})

LTXV_LORA_COMFY_RENAMING_MAP = (
    SDOps("LTXV_LORA_COMFY_PREFIX_MAP").with_matching().with_replacement("diffusion_model.", "")
)
LTXV_LORA_COMFY_TARGET_MAP = (
    SDOps("LTXV_LORA_COMFY_TARGET_MAP")
    .with_matching()
    .with_replacement("diffusion_model.", "")
    .with_replacement(".lora_A.weight", ".weight")
    .with_replacement(".lora_B.weight", ".weight")
)
