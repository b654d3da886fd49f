"""Where weights rest, by what a device has to spare. The only place that asks a GPU about memory."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ltx_core.errors import InputError


def get_device(name: torch.device | str | None = None) -> torch.device:
    """The device of this name; without one a CUDA GPU if there is any, else the CPU.

    Raises `InputError` for a name that PyTorch does not know, or a device that it does not see.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"device is {name!r}; give cpu, cuda, or cuda:N for the N-th GPU.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device is {str(device)!r}, but PyTorch sees {torch.cuda.device_count()} GPUs; use --device cpu, or "
            "install a CUDA build of PyTorch."
        )
    if device.type not in ("cpu", "cuda"):
        try:
            torch.Generator(device)
        except RuntimeError:
            raise InputError(
                f"device is {name!r}, which this PyTorch does not have; give cpu or cuda."
            ) from None
    return device


def available_bytes(device: torch.device) -> int | None:
    """Bytes that a new allocation on `device` may take, or None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def cleanup_memory() -> None:
    """Return memory that nothing uses to the system; safe on machines without a GPU."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        # Pinned memory looks taken as long as PyTorch keeps it. Version 2.11 has no public name for this.
        private = getattr(torch._C, "_host_emptyCache", None)
        if empty := getattr(torch.accelerator, "empty_host_cache", private):
            empty()


def current(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which `device` is the current GPU, where kernels other than PyTorch's own are launched."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


MAIN = torch.device("cpu")  # main memory, where blocks of large models may wait
HEADROOM = 1.15  # a component needs this multiple of its size: its activations want room too
STREAMED_SHARE = 4  # a streamed component has at most about 1/4 of itself on the device
ROOM_FOR_TEXTS = 8  # a stage keeps keys and values of texts that take 1/8 of what is free, or less
STREAMABLE = ("transformer", "text_encoder")
SLOW_TO_LOAD = 2**30  # bytes; what is larger takes long enough that a user wants to know


@dataclass(frozen=True)
class MemoryPolicy:
    """Where the weights of each component rest while it is in use, and a sentence that says so.

    free: bytes that components may take, None where the system does not tell. offload: by component, "none",
    "cpu" or "disk".
    """

    free: int | None
    offload: Mapping[str, str]
    sentence: str


def choose_policy(
    sizes: Mapping[str, int],
    device: torch.device,
    free: int | None,
    main: int | None = None,
    asked: str | None = None,
    kept: Mapping[str, int] | None = None,
) -> MemoryPolicy:
    """The policy for components of `sizes` bytes: `asked` for, or what fits, the quickest first.

    free, main: bytes that they may take on the device and in main memory; None: unknown, so any number.
    kept: by component, what a resident one takes in main memory besides.
    """
    kept = kept or {}
    fits = {name: _fits(size, kept.get(name, 0), device, free, main) for name, size in sizes.items()}
    offload = {name: _offload(name, sizes[name], fits[name], device, main, asked) for name in sizes}
    streamed = [f"{name} from {where}" for name, where in offload.items() if where != "none"]
    resident = [name for name in sizes if offload[name] == "none"]
    total = sum(sizes[name] // (1 if name in resident else STREAMED_SHARE) for name in sizes)
    total_kept = sum(kept.get(name, 0) for name in resident)
    sentences = [f"Streamed block by block: {', '.join(streamed)}."] if streamed else []
    unasked = [name for name, where in offload.items() if where not in ("none", asked)]
    if beside := [name for name in unasked if _fits(sizes[name], 0, device, free, main)]:
        sentences.append(
            f"Alone the {beside[0]} would fit: --no-fuse-loras spares the second copy of its weights."
        )
    too_large = [name for name in resident if not fits[name]]
    if too_large:
        sentences.append(
            f"Does not fit: {too_large[0]} alone is too large; use --offload cpu (or disk), or --quantization."
        )
    elif _fits(total, total_kept, device, free, main):
        sentences.append("Fits: what is loaded stays loaded between stages and calls.")
    else:
        sentences.append("Fits: components take turns, so stages and calls load some of them again.")
    return MemoryPolicy(free, offload, " ".join(sentences))


def _fits(size: int, kept: int, device: torch.device, free: int | None, main: int | None) -> bool:
    """Whether `size` bytes find room on the device, and `kept` ones in main memory."""
    if device.type == "cpu":  # which is one place
        return free is None or (size + kept) * HEADROOM <= free
    return (free is None or size * HEADROOM <= free) and (main is None or kept * HEADROOM <= main)


def _offload(
    name: str, size: int, is_fitting: bool, device: torch.device, main: int | None, asked: str | None
) -> str:
    if name not in STREAMABLE:
        return "none"
    if asked is not None:
        # On a CPU the weights are in main memory anyway.
        return "none" if asked == "cpu" and device.type == "cpu" else asked
    if is_fitting:
        return "none"
    fits_main = device.type != "cpu" and (main is None or size * HEADROOM <= main)
    return "cpu" if fits_main else "disk"
