"""A device that is not there: its tensors compute on the CPU, but do not mix with those that are on the CPU.

What otherwise only a GPU would show shows without one: a tensor that was made or left in the wrong place, and work
that waits for the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "standin"
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
ANSWERS = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default)  # to the CPU
INDEXED = (
    aten.index.Tensor,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)  # by tensors of the CPU, too


class Placed(torch.Tensor):
    """A tensor of the device, around the one of the CPU that computes."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Placed:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        placed = torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=f"{NAME}:0", **layout)
        placed.inner = inner
        return placed

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("A tensor of the stand-in device outlived it.")

    def __repr__(self, **options: Any) -> str:
        return f"{NAME}: {self.inner!r}"


def fetched(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, from wherever it is."""
    return tensor.inner if isinstance(tensor, Placed) else tensor


def each(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """`value` with all tensors in it changed. PyTorch's own way to do this takes longer than the operations."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        items = [each(change, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {name: each(change, item) for name, item in value.items()}
    return value


def is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


class Operations(TorchDispatchMode):
    """Computes on the CPU, places the results, and refuses to mix. waits: for the device, by what waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors: list[torch.Tensor] = []

        def fetch(tensor: torch.Tensor) -> torch.Tensor:
            tensors.append(tensor)
            return fetched(tensor)

        args, kwargs = each(fetch, (args, kwargs or {}))
        placed = any(isinstance(tensor, Placed) for tensor in tensors)
        foreign = [tensor for tensor in tensors if not isinstance(tensor, Placed)]
        wide = [tuple(tensor.shape) for tensor in foreign if tensor.ndim]  # numbers go anywhere
        device = kwargs.get("device")
        if placed and wide and function not in COPIES + INDEXED:
            raise RuntimeError(f"{function} mixes {NAME} with {wide} of the CPU")
        leaves = placed and (function in ANSWERS or (device is not None and not is_here(device)))
        comes = wide and (placed or is_here(device))
        if leaves or comes:
            self.waits[str(function)] += 1
        if is_here(device):
            kwargs["device"] = torch.device("cpu")
        result = function(*args, **kwargs)
        if function is aten.copy_.default:
            return tensors[0]
        stays = is_here(device) if device is not None else placed and function not in ANSWERS[:2]
        return each(Placed, result) if stays else result


class Functions(TorchFunctionMode):
    """What looks at the device before it comes to operations."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name == "scaled_dot_product_attention":
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            assert len({value.device for value in given}) == 1, "attention on two devices"
            result = function(*each(fetched, args), **each(fetched, kwargs))
            return Placed(result) if isinstance(given[0], Placed) else result
        makes = name in ("tensor", "as_tensor") and is_here(kwargs.get("device"))
        if makes or (name == "new_tensor" and isinstance(args[0], Placed)):
            self.operations.waits[name] += 1
            kwargs |= {"device": "cpu"} if makes else {}
            return Placed(function(*each(fetched, args), **kwargs))
        if name == "tolist" and isinstance(args[0], Placed):
            self.operations.waits[name] += 1
            return args[0].inner.tolist()
        return function(*args, **kwargs)


class Generator(torch.Generator):
    """Draws on the CPU for every device."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")


class AtOnce:
    """An executor whose work is done when it is given: modes are of one thread."""

    def __init__(self, *options: Any, **more: Any) -> None:
        pass

    def submit(self, work: Any, *args: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(work(*args))
        except BaseException as error:
            future.set_exception(error)
        return future


@cache
def register() -> None:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch has no backends in Python")
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    # Asked of every device there is when activations are recomputed, on whichever device.
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]


@contextmanager
def stand_in_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Operations]:
    """Within it there is a device `NAME`; no tensor of it may be used after."""
    register()
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr("ltx_core.loader.streaming.ThreadPoolExecutor", AtOnce)
    operations = Operations()
    with torch.no_grad(), Functions(operations), operations:
        yield operations
