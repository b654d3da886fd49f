"""What a network says to a tensor that it cannot take."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ltx_core.errors import DtypeError, ShapeError


def check_tensor(
    x: torch.Tensor,
    taker: str,
    kind: str,
    sizes: Sequence[int | str],
    dtype: torch.dtype | None = None,
    *,
    scaling: str = "",
) -> None:
    """Refuse `x` unless it has the `sizes` (a name stands for any size but 0) and the `dtype`.

    taker, kind: subject and object of the message, "The encoder" and "pixels". dtype: the network's; None for
    one that takes any floating-point numbers. scaling: for messages, how to turn integers into such.
    Reads no values, so it never waits for a device. Raises `ShapeError`, or `DtypeError` (a TypeError).
    """
    shape = tuple(x.shape)
    if len(shape) != len(sizes) or not all(
        n and (isinstance(size, str) or n == size) for n, size in zip(shape, sizes)
    ):
        empty = "; no size may be 0" if 0 in shape else ""
        raise ShapeError(f"{taker} takes ({', '.join(map(str, sizes))}) {kind}, not {shape}{empty}.")
    check_floating(x, taker, kind, scaling)
    # Under autocast the layers convert what they are given.
    if dtype is not None and x.dtype is not dtype and not torch.is_autocast_enabled(x.device.type):
        raise DtypeError(
            f"{taker} is {dtype} and does not take {x.dtype} {kind}; convert them with .to({dtype})."
        )


def check_floating(x: torch.Tensor, taker: str, kind: str, scaling: str = "") -> None:
    """Raise `DtypeError` unless `x` has floating-point numbers; the rest as for `check_tensor`."""
    if not x.is_floating_point():
        raise DtypeError(f"{taker} takes floating-point {kind}, not {x.dtype}{scaling}.")
