"""Muon: orthogonal updates for matrices and kernels, Adam's for the rest, and resuming."""

import copy

import torch
from torch import nn

from ltx_trainer.config import Method, OptimizerConfig
from ltx_trainer.optimizer import Muon, make_optimizer, orthogonalise

CONFIG = OptimizerConfig(method=Method.MUON, learning_rate=1e-2, betas=(0.9, 0.99))


class Mixed(nn.Module):
    """A matrix, a kernel, a narrow matrix, a table and biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(32, 24)
        self.kernel = nn.Conv3d(16, 20, 3)
        self.narrow = nn.Linear(32, 4)
        self.table = nn.Embedding(40, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(x + self.table.weight[:1]).sum() + self.linear(x).square().sum()


def test_singular_values_become_about_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 64), (64, 24), (32, 32)):
        skewed = torch.randn(shape, generator=generator) @ torch.diag(torch.logspace(0, -1, shape[1]))
        values = torch.linalg.svdvals(orthogonalise(skewed).float())
        assert values.min() > 0.4
        assert values.max() < 1.4


def test_matrices_and_kernels_are_orthogonal_and_tables_and_biases_are_not() -> None:
    model = Mixed()
    groups = make_optimizer(model, CONFIG).param_groups
    orthogonal = {id(p) for group in groups if group["orthogonal"] for p in group["params"]}
    assert orthogonal == {id(model.linear.weight), id(model.kernel.weight)}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_step_is_as_large_as_adams_whatever_the_gradients_scale() -> None:
    for scale in (1e-4, 1e4):
        weight = nn.Parameter(torch.zeros(64, 32))
        weight.grad = scale * torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
        Muon([{"params": [weight], "orthogonal": True}], lr=1e-2).step()
        size = weight.detach().square().mean().sqrt()
        assert 0.1e-2 < size < 0.3e-2


def test_vectors_step_as_with_pytorchs_adam() -> None:
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    muon = Muon([ours], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    adam = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(5):
        gradient = torch.arange(5.0) - step
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        adam.step()
    torch.testing.assert_close(ours, theirs)


def test_a_state_that_is_loaded_goes_on_as_the_one_that_was_saved() -> None:
    first, second = Mixed(), Mixed()
    one, other = make_optimizer(first, CONFIG), make_optimizer(second, CONFIG)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))

    def step(model: Mixed, optimizer: torch.optim.Optimizer) -> None:
        model(x).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(first, one)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    step(first, one)
    step(second, other)
    for mine, theirs in zip(first.parameters(), second.parameters()):
        assert torch.equal(mine, theirs)


def test_adamw_is_pytorchs() -> None:
    assert type(make_optimizer(Mixed(), OptimizerConfig())) is torch.optim.AdamW
