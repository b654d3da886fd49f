"""The official import path of `ltx_core.module_ops`."""

from ltx_core.module_ops import ModuleOps

__all__ = ["ModuleOps"]
