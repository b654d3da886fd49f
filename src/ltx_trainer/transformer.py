"""Trains the joint audio-video transformer with its text connectors, on cached latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.loader import Checkpoint, LoraSwitcher, save_checkpoint
from ltx_core.model.transformer import LTXModelConfigurator
from ltx_core.model.transformer.adaln import AdaLayerNormSingle
from ltx_core.model.transformer.block import TransformerBlock
from ltx_core.sd_ops import EMBEDDINGS_PROCESSOR_KEY_OPS, LTXV_MODEL_COMFY_RENAMING_MAP
from ltx_core.text_encoders.gemma.embeddings_connector import ConnectorBlock
from ltx_core.text_encoders.gemma.encoders.encoder_configurator import EmbeddingsProcessorConfigurator
from ltx_core.text_encoders.gemma.feature_extractor import size_projections
from ltx_core.text_encoders.gemma.language_model import GemmaLayer
from ltx_pipelines.utils.constants import DEFAULTS_KEY
from ltx_pipelines.utils.loras import as_loras
from ltx_trainer.cache import LatentCache
from ltx_trainer.config import Method, Precision, RunConfig, StageConfig, require_positive
from ltx_trainer.data import to_device
from ltx_trainer.flow import Drawn, NoiseConfig, TasksConfig, draw
from ltx_trainer.lora import LoRAConfig, add_lora, save_lora
from ltx_trainer.start import make_part, read_network, seeded, version_of
from ltx_trainer.task import Batch, Task, weighted
from ltx_trainer.text import TextTower, make_contexts, merge_registers

STREAMS = ("video", "audio")
BLOCKS = (TransformerBlock, ConnectorBlock, GemmaLayer)


@dataclass(frozen=True, kw_only=True)
class LatentStage(StageConfig):
    """A stretch of the run on some caches, which take turns from batch to batch and say what the format is."""

    caches: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.caches:
            raise ConfigError("stages: caches is empty; name at least one folder of latents.")


@dataclass(frozen=True, kw_only=True)
class TransformerRun(RunConfig):
    """A run of ``transformer``.

    fused: LoRAs that are added to the weights of `start` and do not learn, such as a distilled one.
    gemma: folder of the text encoder. train_gemma: whether it learns too, and is written beside the model.
    text_length: positions of a context; 1024 when generating, and a multiple of the connectors' registers.
    dropped_captions: what stands in for a caption that is left out. video_weight, audio_weight: of the losses.
    evaluation: a cache that is not trained on, of which `evaluation_clips` are scored.
    gradient_checkpointing: recompute blocks in the backward pass to save memory. shard: spread weights, gradients and
    optimiser states over the processes of the run, so that a model can be larger than a GPU.
    """

    stages: tuple[LatentStage, ...]
    gemma: str
    train_gemma: bool = False
    text_length: int = 1024
    dropped_captions: tuple[str, ...] = ("",)
    fused: tuple[str, ...] = ()
    tasks: TasksConfig = field(default_factory=TasksConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    video_weight: float = 1.0
    audio_weight: float = 1.0
    evaluation: str | None = None
    gradient_checkpointing: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("", self, names=("text_length",))
        if self.lora.rank and (self.start is None or self.train_gemma):
            raise ConfigError("A LoRA adapts a trained model: give `start`, and leave train_gemma out.")
        if not self.dropped_captions:
            raise ConfigError('dropped_captions is empty; [""] leaves captions out.')
        if self.shard and (self.optimizer.method is not Method.ADAMW or self.optimizer.average):
            raise ConfigError(
                'Sharded weights are trained by AdamW, without an average: set optimizer.method = "adamw" and '
                "optimizer.average = 0, or leave `shard` out."
            )
        if self.fused and self.start is None:
            raise ConfigError("fused are LoRAs for the weights to start from: give `start`.")

    @property
    def loss_weights(self) -> dict[str, float]:
        """Those of the streams' losses."""
        return {"video": self.video_weight, "audio": self.audio_weight}


class Denoiser(nn.Module):
    """Everything that is trained: text encoder if it is, embeddings processor, transformer.

    sharded: whether all weights must be in it, those of a frozen text encoder too.
    """

    def __init__(
        self, text: TextTower, processor: Any, transformer: Any, text_length: int, sharded: bool = False
    ) -> None:
        super().__init__()
        self.processor, self.transformer, self.text_length = processor, transformer, text_length
        self.trained_text = text if text.trained or sharded else None
        self._text = [text]  # in a list, so that checkpoints do not hold a frozen text encoder

    @property
    def text(self) -> TextTower:
        return self._text[0]

    def forward(self, ids: Tensor, mask: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Velocities of both streams."""
        text = self.trained_text or self.text.to(ids.device)
        states = text(ids, mask)
        contexts, bias = make_contexts(self.processor, states, mask, self.text_length)
        streams = (drawn.modality(name, contexts[name], bias) for name in STREAMS)
        return self.transformer(*streams, drawn.perturbations)


class TransformerTask(Task):
    """The model of the configuration's ``transformer`` section."""

    name = "transformer"
    config: TransformerRun

    def __init__(self, config: TransformerRun) -> None:
        super().__init__(config)
        self.network = read_network(config, "transformer")
        self.caches = {path: LatentCache(path) for stage in config.stages for path in stage.caches}
        self.evaluation = LatentCache(config.evaluation) if config.evaluation else None
        _check_caches([*self.caches.values(), *([self.evaluation] if self.evaluation else [])])
        bare = [path for path, cache in self.caches.items() if not cache.config.references]
        if config.tasks.reference and bare:
            raise ConfigError(
                f"tasks.reference asks for clips to follow, of which {bare[0]} holds none; make it anew with "
                "references = true."
            )
        alone = [path for stage in config.stages if stage.batch_size < 2 for path in stage.caches]
        if config.tasks.cut and not all(self.caches[path].config.originals for path in alone):
            raise ConfigError(
                "tasks.cut takes surroundings from another clip of the batch: give batches of two or more, or make "
                "the cache anew with originals = true."
            )
        text = TextTower(config.gemma, trained=config.train_gemma)
        frozen = config.lora.rank > 0 and config.precision is Precision.BF16
        made = (config, self.network, torch.bfloat16 if frozen else torch.float32)
        processor = make_part(EmbeddingsProcessorConfigurator, EMBEDDINGS_PROCESSOR_KEY_OPS, *made)
        transformer: Any = make_part(LTXModelConfigurator, LTXV_MODEL_COMFY_RENAMING_MAP, *made)
        with seeded(config.seed):
            size_projections(processor, text.features)
        if config.start is None:
            begin_as_identity(transformer)
        merge_registers(processor, new=config.start is None)
        LoraSwitcher(transformer).apply(as_loras(config.fused))
        if config.lora.rank:
            processor.requires_grad_(False)
            with seeded(config.seed):
                add_lora(transformer, config.lora)
        transformer.set_gradient_checkpointing(config.gradient_checkpointing)
        self.blocks = BLOCKS if config.shard else ()
        self.model: Denoiser = Denoiser(text, processor, transformer, config.text_length, config.shard)

    @property
    def identity(self) -> dict[str, Any]:
        """What checkpoints must agree on beside the network."""
        return {
            "gemma": self.model.text.identity,
            "train_gemma": self.config.train_gemma,
            "lora": vars(self.config.lora),
            "fused": list(self.config.fused),
        }

    def batch(self, stage: int, numbers: Sequence[int], device: torch.device, turn: int = 0) -> Batch:
        paths = self.config.stages[stage].caches
        cache = self.caches[paths[turn % len(paths)]]
        return self._tokenised(cache, cache.clips(numbers))

    def _tokenised(self, cache: LatentCache, clips: Batch) -> Batch:
        """The batch with tokens in the place of captions, with and without what they say."""
        captions, dropped = clips.pop("captions"), self.config.dropped_captions
        empty = [dropped[i % len(dropped)] for i in range(len(captions))]
        ids, mask = self.model.text.tokens([*captions, *empty])
        return clips | {
            "ids": ids,
            "mask": mask,
            "keyframe_indices": cache.keyframes,
            "fps": cache.config.fps,
        }

    def losses(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        drawn = draw(batch, batch["keyframe_indices"], batch["fps"], config.tasks, config.noise, generator)
        count = len(batch["video"])
        chance = torch.rand(count, generator=generator, device=generator.device)
        rows = torch.arange(count, device=chance.device) + count * (chance < config.tasks.caption)
        velocities = model(batch["ids"][rows], batch["mask"][rows], drawn)
        parts = {name: drawn.loss(name, velocity) for name, velocity in zip(STREAMS, velocities)}
        return weighted(config.loss_weights, parts)

    def evaluate(self, stage: int, device: torch.device) -> dict[str, float]:
        """The losses on the evaluation cache, with the same noise at every call."""
        if self.evaluation is None:
            return {}
        generator = torch.Generator(device).manual_seed(0)
        size, sums, batches = self.config.stages[stage].batch_size, dict.fromkeys(STREAMS, 0.0), 0
        for start in range(0, self.config.evaluation_clips, size):
            clips = self._tokenised(self.evaluation, self.evaluation.clips(range(start, start + size)))
            parts = self.losses(self.model, to_device(clips, device), generator)
            sums = {name: total + float(parts[name]) for name, total in sums.items()}
            batches += 1
        return {f"{name}_test": total / batches for name, total in sums.items()}

    def export(self, path: Path, device: torch.device) -> None:
        """The transformer and the embeddings processor; a Gemma that was trained stands beside the file.

        Defaults of calls that the file to start from brings are this one's too.
        A LoRA run writes the LoRA alone, and if it learnt from references, says how large these are.
        """
        if self.config.lora.rank:
            metadata = {"reference_downscale_factor": "1"} if self.config.tasks.reference else {}
            save_lora(path, self.model.transformer, self.config.lora, metadata)
            return
        parts = {"transformer": self.model.transformer, "embeddings_processor": self.model.processor}
        begun = Checkpoint(self.config.start).metadata if self.config.start is not None else {}
        defaults = {DEFAULTS_KEY: begun[DEFAULTS_KEY]} if DEFAULTS_KEY in begun else {}
        save_checkpoint(path, parts, self.network, version_of(self.config), metadata=defaults)
        if self.config.train_gemma:
            self.model.text.write(path.with_name("gemma"))


def _check_caches(caches: Sequence[LatentCache]) -> None:
    """Raise `ConfigError` for caches whose latents are not of the same encoders."""
    for cache in caches[1:]:
        if cache.models != caches[0].models:
            raise ConfigError(
                f"The latents of {cache.folder} and {caches[0].folder} were made with different encoders; make "
                "both with the same ones."
            )


@torch.no_grad()
def begin_as_identity(transformer: nn.Module) -> None:
    """Start with closed gates and a velocity of 0, from which deep diffusion transformers train well.

    All modulations begin at 0, whatever the noise level (adaLN-Zero, Peebles & Xie 2022, arXiv:2212.09748).
    """
    for name, parameter in transformer.named_parameters():
        if "scale_shift_table" in name or name.startswith(("proj_out.", "audio_proj_out.")):
            parameter.zero_()
    for module in transformer.modules():
        if isinstance(module, AdaLayerNormSingle):
            module.linear.weight.zero_()
            module.linear.bias.zero_()
