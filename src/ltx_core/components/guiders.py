"""Guidance: how the estimates of several transformer passes become one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ltx_core.errors import InputError

Estimate = torch.Tensor | float
"""x0 tokens (B, T, D), or 0.0 for a pass that was not run."""


def projection_coef(to_project: torch.Tensor, project_onto: torch.Tensor) -> torch.Tensor:
    """(B, 1) <a, b> / (<b, b> + 1e-8) of each batch item: the length of a along b, in units of b."""
    a, b = to_project.flatten(1), project_onto.flatten(1)
    return (a * b).sum(dim=1, keepdim=True) / ((b * b).sum(dim=1, keepdim=True) + 1e-8)


def _project(vector: torch.Tensor, onto: torch.Tensor) -> torch.Tensor:
    """The part of each batch item's `vector` that is parallel to `onto`."""
    return projection_coef(vector, onto).view(-1, *[1] * (onto.ndim - 1)) * onto


def _limit_norm(guidance: torch.Tensor, threshold: float) -> torch.Tensor:
    """Scale `guidance` down to an L2 norm of `threshold` over the last three axes; 0 leaves it alone."""
    if threshold <= 0:
        return guidance
    norm = guidance.norm(p=2, dim=tuple(range(guidance.ndim))[-3:], keepdim=True)
    return guidance * (threshold / norm).clamp(max=1)


def _adaptive_projected(guidance: torch.Tensor, cond: torch.Tensor, eta: float) -> torch.Tensor:
    """Adaptive projected guidance (arXiv:2410.02416): weigh the part parallel to `cond` by `eta`."""
    parallel = _project(guidance, cond)
    return eta * parallel + (guidance - parallel)


@dataclass(frozen=True)
class CFGGuider:
    """Classifier-free guidance."""

    scale: float

    def delta(self, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        return (self.scale - 1) * (cond - uncond)

    def enabled(self) -> bool:
        return self.scale != 1.0


@dataclass(frozen=True)
class CFGStarRescalingGuider:
    """CFG against the unconditional estimate, rescaled to match the conditional one (CFG-Zero*)."""

    scale: float

    def delta(self, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        return (self.scale - 1) * (cond - _project(cond, uncond))

    def enabled(self) -> bool:
        return self.scale != 1.0


@dataclass(frozen=True)
class STGGuider:
    """Spatio-temporal guidance: away from an estimate with perturbed attention."""

    scale: float

    def delta(self, pos_denoised: torch.Tensor, perturbed_denoised: torch.Tensor) -> torch.Tensor:
        return self.scale * (pos_denoised - perturbed_denoised)

    def enabled(self) -> bool:
        return self.scale != 0.0


@dataclass(frozen=True)
class LtxAPGGuider:
    """Adaptive projected guidance; norm_threshold 0 does not limit the norm."""

    scale: float
    eta: float = 1.0
    norm_threshold: float = 0.0

    def delta(self, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        guidance = _limit_norm(cond - uncond, self.norm_threshold)
        return (self.scale - 1) * _adaptive_projected(guidance, cond, self.eta)

    def enabled(self) -> bool:
        return self.scale != 1.0


@dataclass
class LegacyStatefulAPGGuider:
    """Adaptive projected guidance with momentum; `running_avg` carries over from call to call."""

    scale: float
    eta: float
    norm_threshold: float = 5.0
    momentum: float = 0.0
    running_avg: torch.Tensor | None = None

    def delta(self, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        guidance = cond - uncond
        if self.momentum != 0:
            if self.running_avg is not None:
                guidance = self.momentum * self.running_avg + guidance
            self.running_avg = guidance
        return self.scale * _adaptive_projected(_limit_norm(guidance, self.norm_threshold), cond, self.eta)

    def enabled(self) -> bool:
        return self.scale != 0.0


@dataclass(frozen=True)
class MultiModalGuiderParams:
    """Guidance of one modality. The defaults guide nothing.

    cfg_scale: away from the negative prompt, 1 = off.
    stg_scale: away from a pass without self-attention in `stg_blocks` (None: in all blocks), 0 = off.
    rescale_scale: how far to bring the standard deviation back to the conditional estimate's, 0 to 1.
    modality_scale: away from a pass in which the modalities do not hear each other, 1 = off.
    skip_step: after each computed step, how many steps reuse its estimate.
    """

    cfg_scale: float = 1.0
    stg_scale: float = 0.0
    stg_blocks: list[int] | None = field(default_factory=list)
    rescale_scale: float = 0.0
    modality_scale: float = 1.0
    skip_step: int = 0


@dataclass(frozen=True)
class MultiModalGuider:
    """Guidance of one modality with its negative text context (B, S, D), None if there is none."""

    params: MultiModalGuiderParams
    negative_context: torch.Tensor | None = None

    def calculate(
        self, cond: torch.Tensor, uncond_text: Estimate, uncond_perturbed: Estimate, uncond_modality: Estimate
    ) -> torch.Tensor:
        """The guided estimate, computed in float32, in the shape and dtype of `cond`.

        c + (cfg - 1)(c - text) + stg (c - perturbed) + (modality - 1)(c - isolated), then rescaled by
        rescale * std(c) / std(guided) + 1 - rescale, the deviations being taken over the whole tensor.
        """
        params, base = self.params, cond.float()
        guided = base
        terms = (
            (params.cfg_scale - 1, uncond_text),
            (params.stg_scale, uncond_perturbed),
            (params.modality_scale - 1, uncond_modality),
        )
        for weight, estimate in terms:
            if weight != 0:
                guided = guided + weight * (base - estimate)
        if params.rescale_scale != 0:
            factor = base.std() / guided.std()
            guided = guided * (params.rescale_scale * factor + (1 - params.rescale_scale))
        return guided.to(cond.dtype)

    def do_unconditional_generation(self) -> bool:
        return not math.isclose(self.params.cfg_scale, 1.0)

    def do_perturbed_generation(self) -> bool:
        return not math.isclose(self.params.stg_scale, 0.0)

    def do_isolated_modality_generation(self) -> bool:
        return not math.isclose(self.params.modality_scale, 1.0)

    def should_skip_step(self, step: int) -> bool:
        """Whether this step reuses the last estimate."""
        return self.params.skip_step != 0 and step % (self.params.skip_step + 1) != 0


@dataclass(frozen=True)
class MultiModalGuiderFactory:
    """Guidance that changes with the noise level: parameters by the upper end of a bin of sigmas.

    Make it with `constant` or `from_dict`.
    """

    negative_context: torch.Tensor | None = None
    _params_by_sigma: tuple[tuple[float, MultiModalGuiderParams], ...] = ()

    @classmethod
    def constant(
        cls, params: MultiModalGuiderParams, negative_context: torch.Tensor | None = None
    ) -> MultiModalGuiderFactory:
        """The same parameters at every noise level."""
        return cls(negative_context, ((math.inf, params),))

    @classmethod
    def from_dict(
        cls,
        sigma_to_params: Mapping[float, MultiModalGuiderParams],
        negative_context: torch.Tensor | None = None,
    ) -> MultiModalGuiderFactory:
        """Parameters by upper end of their bin: {1.0: a, 0.5: b} gives a in (0.5, 1] and b from 0.5 down.

        Raises `InputError` for an empty mapping.
        """
        if not sigma_to_params:
            raise InputError("No guider parameters were given; map at least one sigma to its parameters.")
        bins = ((float(sigma), params) for sigma, params in sigma_to_params.items())
        return cls(negative_context, tuple(sorted(bins, key=lambda entry: entry[0], reverse=True)))

    def params(self, sigma: float | torch.Tensor) -> MultiModalGuiderParams:
        """The parameters of the smallest bin that reaches up to `sigma`; above all bins, the highest one's.

        Raises `InputError` if there are no bins.
        """
        if not self._params_by_sigma:
            raise InputError("This guider factory has no parameters; make it with constant or from_dict.")
        reaching = [params for upper, params in self._params_by_sigma if upper >= float(sigma)]
        return reaching[-1] if reaching else self._params_by_sigma[0][1]

    @property
    def all_params(self) -> tuple[MultiModalGuiderParams, ...]:
        """The parameters of every bin, from the highest one down."""
        return tuple(params for _, params in self._params_by_sigma)

    def build_from_sigma(self, sigma: float | torch.Tensor) -> MultiModalGuider:
        """The guider for noise level `sigma`."""
        return MultiModalGuider(self.params(sigma), self.negative_context)


def create_multimodal_guider_factory(
    params: MultiModalGuiderParams | MultiModalGuiderFactory,
    negative_context: torch.Tensor | None = None,
) -> MultiModalGuiderFactory:
    """A factory from parameters or from a factory, with `negative_context` if one is given."""
    if isinstance(params, MultiModalGuiderParams):
        return MultiModalGuiderFactory.constant(params, negative_context)
    if negative_context is None or negative_context is params.negative_context:
        return params
    return MultiModalGuiderFactory(negative_context, params._params_by_sigma)
