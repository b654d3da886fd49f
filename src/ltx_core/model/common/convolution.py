"""Convolutions as CPUs do them quickest and with least memory; float32 that is not rounded on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SLICE_BYTES = 32 * 2**20  # of a kernel that is applied at once on a CPU
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by a kernel's number of axes


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d`, whose large kernels a CPU applies to some output channels at a time.

    oneDNN reorders a copy of the kernel at every call: 450 MB for the widest layer of a published decoder. In
    slices the result is the same but for rounding, and takes as long.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        slices = min(-(-weight.nbytes // SLICE_BYTES), len(weight))
        if slices == 1 or weight.device.type != "cpu":
            return super()._conv_forward(input, weight, bias)
        biases = [None] * slices if bias is None else bias.chunk(slices)
        parts = zip(weight.chunk(slices), biases)
        return torch.cat([super(Conv3d, self)._conv_forward(input, w, b) for w, b in parts], dim=1)


def with_channels_last(model: nn.Module) -> nn.Module:
    """The model, after the channels of its 16-bit kernels have been laid side by side on a CPU, in place.

    So are then those of all that it convolves. oneDNN reads 16-bit numbers in this order, and would reorder kernels
    and activations at each call; of float32 it does not. Results are the same but for rounding.
    """
    for kernel in model.parameters():
        if kernel.ndim in CHANNELS_LAST and kernel.device.type == "cpu" and kernel.dtype.itemsize == 2:
            with torch.inference_mode(False):  # what is made inside it could not be trained through later
                kernel.data = kernel.data.contiguous(memory_format=CHANNELS_LAST[kernel.ndim])
    return model


@contextmanager
def full_float32() -> Iterator[None]:
    """Within, GPUs convolve all of float32. By PyTorch's default cuDNN may take 10 bits of each number (TF32).

    Where a caller has set convolutions apart from the rest of cuDNN, that counts.
    """
    cudnn = torch.backends.cudnn
    try:
        rounds = cudnn.allow_tf32
    except RuntimeError:  # what PyTorch raises where there is no one answer
        rounds = False
    try:
        if rounds:
            cudnn.allow_tf32 = False
        yield
    finally:
        if rounds:
            cudnn.allow_tf32 = True
