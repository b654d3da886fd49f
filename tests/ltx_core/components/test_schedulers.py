"""Schedules: ends, order, dependence on the number of tokens, bad input."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ltx_core.components.schedulers import (
    BetaScheduler,
    LinearQuadraticScheduler,
    LTX2Scheduler,
    flux_time_shift,
)
from ltx_core.errors import InputError


@pytest.mark.parametrize("scheduler", [LTX2Scheduler, LinearQuadraticScheduler, BetaScheduler])
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_schedules_descend_from_1_to_0(scheduler, steps):
    if scheduler is BetaScheduler:
        pytest.importorskip("scipy")
    sigmas = scheduler().execute(steps=steps)
    assert sigmas.dtype == torch.float32
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(1, abs=1e-3)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("scheduler", [LTX2Scheduler, LinearQuadraticScheduler, BetaScheduler])
@pytest.mark.parametrize("steps", [1, 7])
def test_schedules_do_not_follow_the_callers_defaults(scheduler, steps):
    if scheduler is BetaScheduler:
        pytest.importorskip("scipy")
    expected = scheduler().execute(steps=steps)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            sigmas = scheduler().execute(steps=steps)
    finally:
        torch.set_default_dtype(torch.float32)
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, expected)


def test_the_schedule_has_the_same_bits_on_a_cpu_without_fused_multiplication():
    code = (
        "from ltx_core.components.schedulers import LTX2Scheduler\n"
        "print([LTX2Scheduler().execute(steps=steps).tolist() for steps in range(2, 41)])"
    )
    simple = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=simple, capture_output=True, check=True, text=True
    )
    assert json.loads(printed.stdout) == [LTX2Scheduler().execute(steps=n).tolist() for n in range(2, 41)]


@pytest.mark.parametrize("scheduler", [LTX2Scheduler, LinearQuadraticScheduler, BetaScheduler])
def test_no_steps(scheduler):
    with pytest.raises(InputError, match="0 steps"):
        scheduler().execute(steps=0)


def test_stretch_ends_at_terminal():
    sigmas = LTX2Scheduler().execute(steps=8, terminal=0.2)
    assert sigmas[-2] == pytest.approx(0.2)


def test_more_tokens_shift_the_schedule_up():
    few, many = (LTX2Scheduler().execute(steps=8, latent=torch.empty(1, 128, f, 16, 16)) for f in (1, 16))
    assert (many[1:-2] > few[1:-2]).all()


@pytest.mark.parametrize("steps", [15, 50])
@pytest.mark.parametrize("tokens", [36_960, 52_800, 200_000])
def test_levels_descend_however_many_tokens_there_are(steps, tokens):
    sigmas = LTX2Scheduler().execute(steps=steps, latent=torch.empty(1, 128, tokens, 1, 1, device="meta"))
    assert (sigmas.diff() < 0).all()
    # So far up the shift all but vanishes from the ratios of what is left of the signal: 1 / t - 1, up to a factor.
    times = torch.linspace(1, 0, steps + 1)[:-1].double()
    assert torch.allclose(1 - sigmas[:-1].double(), (1 / times - 1) / (1 / times[-1] - 1) * 0.9, atol=1e-5)


def test_default_is_4096_tokens():
    latent = torch.empty(1, 128, 16, 16, 16, device="meta")
    assert torch.equal(LTX2Scheduler().execute(steps=6), LTX2Scheduler().execute(steps=6, latent=latent))


def test_unknown_keywords_are_ignored_where_schedulers_are_exchangeable():
    for scheduler in (LTX2Scheduler, LinearQuadraticScheduler):
        scheduler().execute(steps=3, latent=torch.empty(1, 8, 2, 2, 2), something=1)


def test_no_linear_steps_are_not_half_of_them():
    with pytest.raises(ZeroDivisionError):
        LinearQuadraticScheduler().execute(steps=4, linear_steps=0)


def test_linear_quadratic_begins_with_equal_steps():
    differences = LinearQuadraticScheduler().execute(steps=10, threshold_noise=0.1, linear_steps=4).diff()
    assert torch.allclose(differences[:4], torch.full((4,), -0.025), atol=1e-6)


def test_beta_drops_duplicates():
    pytest.importorskip("scipy")
    sigmas = BetaScheduler().execute(steps=9000)
    assert len(sigmas) < 9001
    assert (sigmas.diff() < 0).all()


def test_beta_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        BetaScheduler().execute(steps=4)


def test_flux_time_shift_keeps_1():
    assert flux_time_shift(2.0, 1.0, torch.tensor([1.0])).item() == pytest.approx(1)
