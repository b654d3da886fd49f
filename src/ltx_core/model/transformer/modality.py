"""The transformer's input type under its public path."""

from ltx_core.types import Modality

__all__ = ["Modality"]
