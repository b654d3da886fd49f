"""3D convolution that does not copy its whole kernel on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLICE_BYTES = 32 * 2**20  # of a kernel that is applied at once on a CPU


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
