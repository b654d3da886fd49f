"""Diffusion goldens: shapes, schedules, guidance, conditioning, steps, loops, denoising functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.conformance.harness import Case, Check, Context, raises, read_json, read_tensors
from tests.conformance.topics.diffusion import components, sampling, states, tables
from tests.conformance.topics.diffusion.common import Golden, Tensors

FILES: dict[str, Callable[[Golden], Iterable[Check]]] = {
    "types": components.types,
    "schedulers": components.schedules,
    "patchifiers": components.patchifiers,
    "utils": components.utils,
    "noiser": components.noiser,
    "guiders": components.guidance,
    "steps": components.steps,
    "v120_steps": components.v120_steps,
    "tools": states.tools,
    "conditioning": states.conditioning,
    "v120_states": states.v120_states,
    "loops": sampling.loops,
    "v120_loops": sampling.v120_loops,
    "denoise_funcs": sampling.denoise_funcs,
    "end_to_end": sampling.end_to_end,
}
WHOLE_FILES = {"perturbations": components.perturbations}
LOOSE: dict[str, tuple[str, Callable[[Tensors], Iterable[Check]]]] = {
    "v_nocausal.positions": ("v_nocausal", states.positions_without_causal_fix),
    "sde.sigma_next": ("sde", components.sde_coefficients),
    "timesteps.mask": ("timesteps", states.timesteps),
}
DESCRIPTIONS = {"cases", "errors", "denoiser", "stub", "replaces"}


def recognises(folder: Path) -> bool:
    return any((folder / f"{name}.json").is_file() for name in ("denoise_funcs", "v120_loops", "schedulers"))


def cases(folder: Path, context: Context) -> Iterator[Case]:
    """All on the CPU, whatever the context's device: these goldens hold the CPU's random numbers."""
    for path in sorted(folder.glob("*.json")):
        name = path.stem if path.stem in FILES else path.stem.removeprefix("v120_")
        if name in WHOLE_FILES:
            yield Case(path.stem, partial(WHOLE_FILES[name], read_json(path)))
        elif name in FILES:
            yield from _of_file(path, FILES[name])
        else:
            yield Case(path.stem, lambda: [Check("file", False, "nobody knows how to run this file")])


def _of_file(path: Path, run: Callable[[Golden], Iterable[Check]]) -> Iterator[Case]:
    """The listed cases, then tensors that belong to none, then the tables beside them."""
    file, beside = read_json(path), path.with_suffix(".safetensors")
    tensors = read_tensors(beside) if beside.is_file() else {}
    for case in file["cases"]:
        yield Case(f"{path.stem}/{case['id']}", partial(run, Golden(case, file, tensors)))
    for key, (name, check) in LOOSE.items():
        if key in tensors:
            yield Case(f"{path.stem}/{name}", partial(check, tensors))
    for name in sorted(set(file) - DESCRIPTIONS):
        yield Case(f"{path.stem}/{name}", partial(_table, name, file))
    for situation, exception in file.get("errors", {}).items():
        yield Case(f"{path.stem}/error: {situation}", partial(_error, situation, exception))


def _table(name: str, file: dict[str, Any]) -> Iterable[Check]:
    if name not in tables.TABLES:
        return [Check(name, False, "nobody knows this table")]
    return tables.TABLES[name](file[name], file)


def _error(situation: str, exception: str) -> Iterable[Check]:
    if situation not in tables.ERRORS:
        return [Check(situation, False, "nobody knows this situation")]
    return [raises(situation, tables.ERRORS[situation], exception)]
