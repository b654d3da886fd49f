"""Clips encoded once: a folder of latents that the transformer is trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltx_core.errors import CheckpointError, ConfigError, InputError, MissingFileError
from ltx_core.loader import write_tensors
from ltx_core.utils import whole_file
from ltx_trainer.checkpoints import difference
from ltx_trainer.config import Precision, require_positive
from ltx_trainer.world.vocabulary import MOTIONS

INDEX = "cache.json"
SHARD = "latents-"  # what the names of its files begin with
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What is encoded: clips in one format, `shard` of them per file.

    folder: of videos with captions; none takes clips of the world, in `style`, of `split` and `seed`, doing
    `motions`, each with so many `captions`. clips: how many, from the first on; 0 for all of the folder.

    video_vae, audio_vae: official-format files, which may be the same. keyframes: pixel frames that are encoded
    as stills too, for keyframe conditioning; -1 is the last. references: also encode what an IC-LoRA learns to
    follow: outlines in the world, the videos of the sub-folder ``references`` in a folder. originals: also encode
    what a retake is made of: in the world the clip in another colour or with another motion, in a folder the videos
    of the sub-folder ``originals``. precision: of the video encoder; "bf16" is quicker on GPUs, and on CPUs that
    can do it.
    """

    video_vae: str
    audio_vae: str
    folder: str = ""
    clips: int = 0
    shard: int = 256
    batch_size: int = 16
    height: int = 128
    width: int = 128
    frames: int = 17
    fps: float = 24.0
    style: str = "plain"
    motions: tuple[str, ...] = MOTIONS
    split: str = "train"
    seed: int = 0
    captions: int = 1
    keyframes: tuple[int, ...] = field(default=(0, -1))
    references: bool = False
    originals: bool = False
    precision: Precision = Precision.FP32

    def __post_init__(self) -> None:
        sizes = ("shard", "batch_size", "captions", "height", "width", "frames", "fps")
        require_positive("", self, names=sizes)
        require_positive("", self, names=("clips",), or_zero=bool(self.folder))
        require_positive("", self, names=("seed",), or_zero=True)
        if self.height % 32 or self.width % 32 or self.frames % 8 != 1:
            raise ConfigError(
                f"Clips of {self.width}x{self.height} pixels and {self.frames} frames do not fit; sides must be "
                "multiples of 32 and frames 8k + 1."
            )
        if not all(-self.frames <= index < self.frames for index in self.keyframes):
            raise ConfigError(f"keyframes are {self.keyframes}, but clips have {self.frames} frames.")

    @property
    def shards(self) -> int:
        """How many files the whole cache has."""
        return -(-self.clips // self.shard)

    def path(self, folder: Path, shard: int) -> Path:
        """The file of a shard."""
        return folder / f"{SHARD}{shard:05d}.safetensors"

    def numbers(self, shard: int) -> range:
        """The clips of a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.clips))


def fingerprint(model: torch.nn.Module) -> str:
    """A name for a model's weights: the beginning of the SHA-256 of all its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().to("cpu", torch.float32).contiguous().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def write_shard(path: Path, tensors: Mapping[str, Tensor], captions: Sequence[Sequence[str]]) -> None:
    """Write one file; complete under its name or not there at all."""
    write_tensors(path, tensors, {"captions": json.dumps(list(captions))})


def open_folder(folder: Path, config: CacheConfig, models: Mapping[str, str], source: str) -> list[int]:
    """Prepare `folder`, which is there, for writing and return the shards that are still to be made.

    models, source: what identifies the encoders and the clips. Raises `InputError` if the folder holds another cache.
    """
    index = {"format": FORMAT, "config": _identity(config), "models": dict(models), "source": source}
    path = folder / INDEX
    if path.is_file() and any(folder.glob(f"{SHARD}*")):
        present, wanted = _read_index(path), json.loads(json.dumps(index))
        if present != wanted:
            key, was, now = difference(present, wanted)
            raise InputError(
                f"{folder} holds latents of other clips or encoders: its {key} is {was}, here it is {now}. Give "
                "another folder, or remove this one."
            )
    else:
        with whole_file(path) as partial:
            partial.write_text(json.dumps(index, indent=1), encoding="utf-8")
    return [shard for shard in range(config.shards) if not config.path(folder, shard).is_file()]


def _identity(config: CacheConfig) -> dict[str, Any]:
    """What decides about the contents: paths, batch size and rounding do not."""
    left_out = ("video_vae", "audio_vae", "folder", "batch_size", "precision")
    return {name: value for name, value in asdict(config).items() if name not in left_out}


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); make the cache anew.") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of another version of this package; make the cache anew.")
    return index


class LatentCache:
    """A complete folder of latents, read clip by clip; files stay on disk until they are asked for.

    Raises `MissingFileError` for a folder that holds none and `CheckpointError` for a half-made one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        path = self.folder / INDEX
        if not path.is_file():
            raise MissingFileError(
                f"{self.folder} holds no latents; make them with `python -m ltx_trainer cache`."
            )
        index = _read_index(path)
        values = index["config"] | {"video_vae": "", "audio_vae": ""}
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        self.config = CacheConfig(**values | lists)
        self.models: dict[str, str] = index["models"]
        self.source: str = index["source"]
        made = sum(self.config.path(self.folder, shard).is_file() for shard in range(self.config.shards))
        if made < self.config.shards:
            raise CheckpointError(
                f"{self.folder} is half made, {made} of {self.config.shards} files; run the same "
                "`python -m ltx_trainer cache` again, it goes on."
            )

    def __len__(self) -> int:
        return self.config.clips

    @property
    def keyframes(self) -> tuple[int, ...]:
        """The pixel frames that are encoded as stills, counted from 0."""
        return tuple(index % self.config.frames for index in self.config.keyframes)

    def clips(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The clips at these positions of an endless, shuffled repetition of the cache.

        "video" (B, C, F, H, W) and "audio" (B, C, L, bins), normalised latents in bfloat16; "keyframes"
        (B, K, C, H, W); "reference" like "video", "original_video" and "original_audio" if there are any;
        "captions", a list of B strings, others at each repetition if clips have several.
        """
        rows = [self._row(number) for number in numbers]
        names = [name for name in rows[0] if name != "captions"]
        batch: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in names}
        return batch | {"captions": [row["captions"] for row in rows]}

    def _row(self, number: int) -> dict[str, Any]:
        epoch, position = divmod(number, len(self))
        clip = int(_shuffled(len(self), self.config.seed, epoch)[position])
        shard, row = divmod(clip, self.config.shard)
        path = self.config.path(self.folder, shard)
        file, captions = _open(path, path.stat().st_mtime_ns)  # of one that was made anew, the new one
        names = list(file.keys())
        choice = captions[row]
        caption = choice[epoch % len(choice)]
        return {name: file.get_slice(name)[row] for name in names} | {"captions": caption}


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


@lru_cache(maxsize=1024)
def _open(path: Path, changed: int) -> tuple[Any, list[list[str]]]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "pt")
        return file, json.loads(file.metadata()["captions"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); remove it and make the cache again, it adds what is missing."
        ) from None
