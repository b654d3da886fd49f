"""What guidance asks of the transformer."""

from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)

__all__ = ["BatchedPerturbationConfig", "Perturbation", "PerturbationConfig", "PerturbationType"]
