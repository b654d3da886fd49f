"""The optimisers of a training run: AdamW, and Muon for networks that have to learn from few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ltx_trainer.config import Method, OptimizerConfig

MOMENTUM = 0.95
RMS = 0.2  # of Muon's updates, about what AdamW's have, so that one learning rate serves both
NARROWEST = 16  # sides of a matrix below which orthogonality means little


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser that `config` names, for the parameters of `model` that are not frozen."""
    trained = [p for p in model.parameters() if p.requires_grad]
    betas = (config.betas[0], config.betas[1])
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.method is Method.ADAMW:
        return torch.optim.AdamW(trained, betas=betas, **settings)
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}  # their rows are apart
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if is_matrix(p) and p not in tables], "orthogonal": True},
        {"params": [p for p in trained if not is_matrix(p) or p in tables]},
    ]
    return Muon([group for group in groups if group["params"]], betas=betas, **settings)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for groups with `orthogonal`, Adam for the others.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the scale of the updates is that
    of Liu et al. 2025, arXiv:2502.16982. A convolution's kernel (O, I, ...) counts as a matrix (O, I * ...), which
    `torch.optim.Muon` does not take.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "orthogonal": False}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; `closure` is not called."""
        for group in self.param_groups:
            update = self._orthogonal if group["orthogonal"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update(parameter, group["betas"]), alpha=-group["lr"])

    def _orthogonal(self, parameter: Tensor, betas: tuple[float, float]) -> Tensor:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].mul_(MOMENTUM).add_(grad)
        matrix = grad.add(momentum, alpha=MOMENTUM).flatten(1)  # Nesterov's
        scale = RMS * math.sqrt(max(matrix.shape))
        return orthogonalise(matrix).to(parameter.dtype).mul_(scale).view_as(parameter)

    def _adam(self, parameter: Tensor, betas: tuple[float, float]) -> Tensor:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state |= {
                "step": torch.zeros(()),
                "mean": torch.zeros_like(grad),
                "square": torch.zeros_like(grad),
            }
        state["step"] += 1
        mean = state["mean"].lerp_(grad, 1 - betas[0]) / (1 - betas[0] ** float(state["step"]))
        square = state["square"].lerp_(grad.square(), 1 - betas[1]) / (1 - betas[1] ** float(state["step"]))
        return mean / square.sqrt_().add_(1e-8)


def is_matrix(parameter: Tensor) -> bool:
    """Whether both sides, seen as a matrix, are wide enough for an orthogonal update."""
    return parameter.ndim > 1 and min(parameter.shape[0], parameter[0].numel()) >= NARROWEST


def orthogonalise(matrix: Tensor) -> Tensor:
    """Roughly U V^T of (M, N) = U S V^T, bfloat16: singular values between about 0.7 and 1.2.

    Five Newton-Schulz iterations with the quintic 3.4445 x - 4.775 x^3 + 2.0315 x^5 (Jordan et al. 2024).
    """
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x
