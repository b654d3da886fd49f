"""From a checkpoint to a module: built on the meta device, each tensor read once into its final place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ltx_core.config import Configurator
from ltx_core.errors import CheckpointError, ConfigError, LTXError
from ltx_core.loader.checkpoint import Checkpoint, TensorInfo
from ltx_core.module_ops import assign
from ltx_core.quantization.fp8 import FP8_DTYPES, ScaledLinear, dequantize
from ltx_core.quantization.policy import NO_POLICY, QuantizationPolicy, scale_linears
from ltx_core.sd_ops import SDOps

Fill = Callable[["Filling", "torch.device | str"], nn.Module]
EVERYTHING = SDOps("everything").with_matching()


class TensorSource(Protocol):
    """What a module can be filled from: a `Checkpoint`, or a state dict behind the same methods."""

    @property
    def path(self) -> Any: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    def __iter__(self) -> Iterator[str]: ...

    def info(self, key: str) -> TensorInfo: ...

    def read(self, key: str, device: torch.device | str = "cpu") -> torch.Tensor: ...


class Stored(NamedTuple):
    """Where a tensor of a component comes from: its key in the file; its shape and bytes after all operations."""

    key: str
    shape: tuple[int, ...]
    nbytes: int


def build_model(
    configurator: Any,
    checkpoint: TensorSource,
    sd_ops: SDOps | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    policy: QuantizationPolicy | None = None,
    fill: Fill | None = None,
) -> nn.Module:
    """A module in eval mode on `device`, without gradients, its floating tensors in `dtype`.

    fill: how the tensors get in; `resident`, or `stream_model` for one that does not fit the device.
    The rest is as for `prepare_model`.
    """
    return (fill or resident)(prepare_model(configurator, checkpoint, sd_ops, dtype, policy), device)


def prepare_model(
    configurator: Any,
    checkpoint: TensorSource,
    sd_ops: SDOps | None = None,
    dtype: torch.dtype | None = None,
    policy: QuantizationPolicy | None = None,
) -> Filling:
    """A module on the meta device whose tensors are found and checked; no tensor is read yet.

    configurator: a class with ``from_config(config)``, or a module on the meta device. dtype None keeps the
    file's dtypes. Layers that the file stores as fp8 with a ``weight_scale`` are widened, unless `policy`
    keeps them. Raises `ConfigError` or `CheckpointError` naming file, key and shapes where the file does not
    fit the configuration.
    """
    policy = policy or NO_POLICY
    key_map = policy.chained(sd_ops or EVERYTHING)
    found = find_tensors(checkpoint, key_map)
    try:
        model = _on_meta(configurator, checkpoint, found)
        return _prepare(model, checkpoint, key_map, found, dtype, policy)
    except ConfigError as error:
        bare = "" if checkpoint.config else "the file carries no model configuration, so it is no model; "
        raise type(error)(f"{checkpoint.path}: {bare}{error}") from error.__cause__


def _on_meta(configurator: Any, checkpoint: TensorSource, found: Mapping[str, Stored]) -> nn.Module:
    if isinstance(configurator, nn.Module):
        return configurator
    config = checkpoint.config
    try:
        if isinstance(configurator, type) and issubclass(configurator, Configurator):
            config = configurator.completed(config, {name: stored.shape for name, stored in found.items()})
        with torch.device("meta"):
            return configurator.from_config(config)
    except LTXError:
        raise
    except Exception as error:  # whatever a negative width or a section that is none may lead to
        raise ConfigError(f"no network can be made of the configuration ({error}).") from error


def resident(filling: Filling, device: torch.device | str) -> nn.Module:
    """The module with all its tensors on `device`."""
    for name, tensor in filling.tensors(device):
        assign(filling.model, name, tensor)
    return filling.model.to(device).eval().requires_grad_(False)


def _prepare(
    model: nn.Module,
    checkpoint: TensorSource,
    key_map: SDOps,
    found: Mapping[str, Stored],
    dtype: torch.dtype | None,
    policy: QuantizationPolicy,
) -> Filling:
    """Change a module on the meta device as `policy` asks, and check what was found of its tensors."""
    scales = weight_scales(checkpoint, found)
    for operation in policy.module_ops:
        model = operation.apply(model)
    kept = _keep_scaled(model, checkpoint, found, scales) if policy.scaled_mm else set()
    for name in set(getattr(model, "optional_parameters", ())) - found.keys():
        model._parameters.pop(name, None)
    wanted = model.state_dict(keep_vars=True)
    check_tensors(checkpoint, found, wanted)
    keys = {name: found[name].key for name in wanted if name in found}
    scales = {weight: scale for weight, scale in scales.items() if weight not in kept}
    is_cast = policy.sd_ops is not None and not policy.scaled_mm
    widened = torch.bfloat16 if is_cast else dtype or torch.bfloat16
    return Filling(model, checkpoint, key_map, keys, scales, kept, dtype, widened)


@dataclass(frozen=True)
class Filling:
    """A module on the meta device, and how each of its tensors is made from a file.

    keys: name in the module -> key in the file. scales: key of an fp8 weight that is widened -> key of its scale.
    kept: keys that stay as they are in the file. dtype: of floating tensors, None as in the file; where a key-value
    operation gives them another one they have that, and it sees the file's. widened: dtype of widened fp8.
    """

    model: nn.Module
    source: TensorSource
    key_map: SDOps
    keys: Mapping[str, str]
    scales: Mapping[str, str]
    kept: Collection[str]
    dtype: torch.dtype | None
    widened: torch.dtype

    def tensors(
        self, device: torch.device | str, prefixes: tuple[str, ...] = ("",)
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor on `device`) of all tensors whose name begins with one of `prefixes`, file by file."""
        names = {name for name in self.keys if name.startswith(prefixes)}
        keys = {self.keys[name] for name in names}
        for key in self.source if prefixes == ("",) else sorted(keys):
            if key not in keys:
                continue
            # Tensors made in inference mode could not take another LoRA outside of it.
            with torch.inference_mode(False), torch.no_grad():
                made = [pair for pair in self._made_from(key, device) if pair[0] in names]
            yield from made

    def _made_from(self, key: str, device: torch.device | str) -> Iterator[tuple[str, torch.Tensor]]:
        name, scale = self.key_map.apply_to_key(key) or key, self.scales.get(key)
        dtype = None if key in self.kept else self.dtype or (self.widened if scale else None)
        # In the file's dtype, which operations see, and in the one that is planned.
        outlines = [_outline(self.source.info(key), kind) for kind in (None, dtype)]
        results = [self.key_map.apply_to_key_value(name, outline) for outline in outlines]
        planned = results[1]
        is_renamed = all(len(made) == 1 and made[0][1] is given for made, given in zip(results, outlines))
        if is_renamed and not scale and isinstance(self.source, Checkpoint):
            yield planned[0][0], self.source.read(key, device, dtype)
            return
        tensor = self.source.read(key, device)
        if scale:
            tensor = dequantize(tensor, self.source.read(scale, device), self.widened)
        for (made, value), (_, like) in zip(self.key_map.apply_to_key_value(name, tensor), planned):
            yield made, value.to(like.dtype)


def find_tensors(
    checkpoint: TensorSource,
    sd_ops: SDOps | None,
    dtype: torch.dtype | None = None,
    kept: Collection[str] = (),
) -> dict[str, Stored]:
    """Name inside the component -> where it is stored, for all keys that `sd_ops` keeps.

    dtype: of floating tensors before the operations, but for the keys in `kept`; None for the file's.
    """
    key_map, found = sd_ops or EVERYTHING, {}
    for key in checkpoint:
        renamed = key_map.apply_to_key(key)
        if renamed is not None:
            outline = _outline(checkpoint.info(key), None if key in kept else dtype)
            for name, value in key_map.apply_to_key_value(renamed, outline):
                found[name] = Stored(key, tuple(value.shape), value.nbytes)
    return found


def _outline(info: TensorInfo, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What key-value operations can be asked with before anything is read."""
    dtype = dtype if dtype is not None and info.dtype.is_floating_point else info.dtype
    return torch.empty(info.shape, dtype=dtype, device="meta")


def weight_scales(checkpoint: TensorSource, found: Mapping[str, Stored]) -> dict[str, str]:
    """Key of an fp8 weight -> key of its ``weight_scale``.

    Raises `CheckpointError` for a scale that is neither one number nor one of each row.
    """
    scales = {}
    for name, weight in found.items():
        scale = found.get(f"{name}_scale") if name.endswith(".weight") else None
        if scale is None or checkpoint.info(weight.key).dtype not in FP8_DTYPES:
            continue
        info, rows = checkpoint.info(scale.key), weight.shape[0]
        if info.numel != 1 and info.shape not in ((rows,), (rows, 1)):
            raise CheckpointError(
                f"{checkpoint.path}: {scale.key} has shape {info.shape}; fp8 weights with one scale for the whole "
                f"tensor, or for each of its {rows} rows, are supported."
            )
        scales[weight.key] = scale.key
    return scales


def _keep_scaled(
    model: nn.Module, checkpoint: TensorSource, found: Mapping[str, Stored], scales: Mapping[str, str]
) -> set[str]:
    """Make `ScaledLinear` of the layers that the file stores as scaled e4m3; the keys that stay as they are.

    Raises `ConfigError` if there is none.
    """
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers = {n: own for n, own in _scaled_layers(checkpoint, found, scales).items() if n in linears}
    if not layers:
        raise ConfigError("no layer is stored as fp8 with a weight_scale; use fp8-cast for this file.")
    scale_linears(model, {n: {part: one.shape for part, one in own.items()} for n, own in layers.items()})
    return _keys_of(layers, found)


def _scaled_layers(
    checkpoint: TensorSource, found: Mapping[str, Stored], scales: Mapping[str, str]
) -> dict[str, dict[str, Stored]]:
    """Layers that are stored as scaled e4m3 -> those of their scales that the file has."""
    layers = [
        name.removesuffix(".weight")
        for name, stored in found.items()
        if stored.key in scales and checkpoint.info(stored.key).dtype is torch.float8_e4m3fn
    ]
    parts = ScaledLinear.SCALES
    return {n: {part: found[f"{n}.{part}"] for part in parts if f"{n}.{part}" in found} for n in layers}


def _keys_of(layers: Mapping[str, Mapping[str, Stored]], found: Mapping[str, Stored]) -> set[str]:
    scales = {one.key for own in layers.values() for one in own.values()}
    return scales | {found[f"{name}.weight"].key for name in layers}


def check_tensors(
    checkpoint: TensorSource, found: Mapping[str, Stored], wanted: Mapping[str, torch.Tensor]
) -> None:
    """Raise `CheckpointError` if the file lacks a tensor of the component or has one of another shape."""
    # A buffer that already has a value is a constant which files may leave out.
    missing = [name for name, tensor in wanted.items() if name not in found and tensor.is_meta]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(missing)} of the {len(wanted)} tensors of this component "
            f"({shown}); it holds another kind of model, or is incomplete."
        )
    for name, tensor in wanted.items():
        if name not in found or is_lazy(tensor):  # a lazy layer takes its shape from the file
            continue
        key, shape, _ = found[name]
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{checkpoint.path}: {key} has shape {shape}, "
                f"the configuration asks for {tuple(tensor.shape)}."
            )


def tensor_bytes(
    checkpoint: TensorSource,
    sd_ops: SDOps | None,
    dtype: torch.dtype | None,
    policy: QuantizationPolicy | None = None,
) -> dict[str, int]:
    """Name -> memory of each tensor of a component as `build_model` would make it, told from the header."""
    policy, kept = policy or NO_POLICY, set()
    key_map = policy.chained(sd_ops or EVERYTHING)
    if policy.scaled_mm:
        found = find_tensors(checkpoint, key_map)
        kept = _keys_of(_scaled_layers(checkpoint, found, weight_scales(checkpoint, found)), found)
    return {name: one.nbytes for name, one in find_tensors(checkpoint, key_map, dtype, kept).items()}
