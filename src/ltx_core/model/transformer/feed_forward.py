"""The two-layer networks with a GELU between: the blocks' feed-forward and the projection of captions."""

import torch
import torch.nn.functional as F
from torch import nn

from ltx_core.errors import ShapeError


class GELUProjection(nn.Module):
    """gelu(linear(x)), tanh approximation."""

    def __init__(self, dim_in: int, dim_out: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _gelu(self.proj(x))


class FeedForward(nn.Module):
    """Linear, GELU, linear on (..., dim), four times as wide inside."""

    def __init__(self, dim: int, bias: bool = True) -> None:
        super().__init__()
        out = nn.Linear(4 * dim, dim, bias=bias)
        self.net = nn.Sequential(GELUProjection(dim, 4 * dim, bias), nn.Identity(), out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class CaptionProjection(nn.Module):
    """Text features (B, S, in_features) to the width of a stream (B, S, hidden_size). LTX-2.0 only."""

    def __init__(self, in_features: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, caption: torch.Tensor) -> torch.Tensor:
        """Raises `ShapeError` for features of another width."""
        if caption.shape[-1:] != (self.linear_1.in_features,):
            raise ShapeError(
                f"The text context has shape {tuple(caption.shape)}; "
                f"the caption projection takes (batch, text tokens, {self.linear_1.in_features})."
            )
        return self.linear_2(_gelu(self.linear_1(caption)))


def _gelu(x: torch.Tensor) -> torch.Tensor:
    """gelu of a tensor that nobody else needs, in its place unless there are gradients: it is the widest there is."""
    if torch.is_grad_enabled():
        return F.gelu(x, approximate="tanh")
    return torch.ops.aten.gelu_(x, approximate="tanh")
