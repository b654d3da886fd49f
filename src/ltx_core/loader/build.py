"""From a checkpoint to a module: built on the meta device, each tensor read once into its final place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.quantization import QuantizationPolicy
from ltx_core.sd_ops import SDOps

NO_POLICY = QuantizationPolicy()


def build_model(
    configurator: Any,
    checkpoint: Checkpoint,
    sd_ops: SDOps | None,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    policy: QuantizationPolicy | None = None,
) -> nn.Module:
    """A module in eval mode on `device`, without gradients, its floating tensors in `dtype`.

    configurator: a class with ``from_config(config)``. dtype None keeps the file's dtypes. Layers that the
    file stores as fp8 with a ``weight_scale`` are widened, unless `policy` keeps them.
    Raises `ConfigError` or `CheckpointError` naming file, key and shapes where the file does not fit.
    """
    try:
        with torch.device("meta"):
            model = configurator.from_config(checkpoint.config)
        return fill_model(model, checkpoint, sd_ops, device, dtype, policy)
    except ConfigError as error:
        raise type(error)(f"{checkpoint.path}: {error}") from None


def fill_model(
    model: nn.Module,
    checkpoint: Checkpoint,
    sd_ops: SDOps | None,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    policy: QuantizationPolicy | None = None,
) -> nn.Module:
    """Give a module on the meta device its tensors from `checkpoint`, each read once into its final place."""
    policy = policy or NO_POLICY
    names = component_keys(checkpoint, sd_ops)
    scales = {name.removesuffix("_scale"): key for name, key in names.items() if name.endswith(".weight_scale")}
    policy.prepare(model, [name.removesuffix(".weight") for name in scales])
    wanted = model.state_dict(keep_vars=True)
    check_tensors(checkpoint, names, wanted)
    for name in names.keys() & wanted.keys():
        scale = checkpoint.read(scales[name], device) if name in scales else None
        as_is = scale is not None or policy is not NO_POLICY
        tensor = checkpoint.read(names[name], device, None if as_is else dtype)
        assign(model, name, policy.convert(name, tensor, scale, dtype))
    return model.to(device).eval().requires_grad_(False)


def component_keys(checkpoint: Checkpoint, sd_ops: SDOps | None) -> dict[str, str]:
    """Name inside the component -> key in the file, for all keys that `sd_ops` keeps."""
    if sd_ops is None:
        return {key: key for key in checkpoint}
    nothing = torch.empty(0)
    names: dict[str, str] = {}
    for key in checkpoint:
        renamed = sd_ops.apply_to_key(key)
        if renamed is not None:
            names |= {result.new_key: key for result in sd_ops.apply_to_key_value(renamed, nothing)}
    return names


def check_tensors(
    checkpoint: Checkpoint, names: Mapping[str, str], wanted: Mapping[str, torch.Tensor]
) -> None:
    """Raise `CheckpointError` if the file lacks a tensor of the component or has one of another shape."""
    # A buffer that already has a value is a constant which files may leave out.
    missing = [name for name, tensor in wanted.items() if name not in names and tensor.is_meta]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(missing)} of the {len(wanted)} tensors of this component ({shown}); "
            "it holds another kind of model, or is incomplete."
        )
    for name, tensor in wanted.items():
        if is_lazy(tensor):  # the shape is the file's
            continue
        found, expected = checkpoint.info(names[name]).shape, tuple(tensor.shape)
        if found != expected:
            raise CheckpointError(
                f"{checkpoint.path}: {names[name]} has shape {found}, the configuration asks for {expected}."
            )


def component_bytes(checkpoint: Checkpoint, sd_ops: SDOps | None, dtype: torch.dtype | None) -> int:
    """Memory of a component in `dtype` (None: as in the file), told from the header."""
    infos = [checkpoint.info(key) for key in component_keys(checkpoint, sd_ops).values()]
    if dtype is None:
        return sum(info.nbytes for info in infos)
    return sum(info.numel for info in infos) * dtype.itemsize


def assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put `tensor` in the place of the parameter or buffer called `name`."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor
