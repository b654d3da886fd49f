"""Weights, gradients and optimiser states spread over a run's processes by PyTorch's FSDP2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ltx_core.errors import InputError


def launcher_shards(*, possible: bool) -> bool:
    """Whether `accelerate config` chose FSDP2, which is then what `shard` does; other ways to shard are refused.

    The choice is taken out of the environment, or Accelerate would shard too, in its own way and on GPUs only.
    """
    chosen = {
        name
        for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"
    }
    second = os.environ.get("FSDP_VERSION", "1") == "2"
    offloads = os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true"
    if chosen and not (possible and chosen == {"FSDP"} and second and not offloads):
        raise InputError(
            "Weights are sharded by FSDP2 alone, without offloading, and for transformer and distill only; choose "
            "plain multi-GPU in `accelerate config`, and for these two set `shard = true` in the run's file."
        )
    if chosen:
        del os.environ["ACCELERATE_USE_FSDP"]
    return bool(chosen)


def shard(model: nn.Module, blocks: tuple[type[nn.Module], ...], accelerator: Any) -> None:
    """Leave each process its share of every weight; a block's are gathered while it runs, the others' all along.

    In bfloat16 weights are gathered as such, while shares and the sums of gradients stay float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # autocast does it where it is due
    )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    model.forward = accelerator.autocast()(model.forward)  # type: ignore[method-assign]
    for module in [*(m for m in model.modules() if isinstance(m, blocks)), model]:
        module.register_forward_hook(_use_all)
        fully_shard(module, mesh=mesh, mp_policy=policy)


def _use_all(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Let `output` depend on all weights that learn: processes can only add up gradients that all of them have.

    What a batch is given decides which weights it uses.
    """
    from torch.distributed.tensor import DTensor

    # Those of blocks within are shares by now.
    own = [p for p in module.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    nothing = 0 * torch.stack([p.flatten()[0] for p in own]).sum() if own else 0
    return tree_map(lambda x: x + nothing if isinstance(x, Tensor) else x, output)


def save_shares(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Every process writes its share of the weights that learn and of the optimiser's state."""
    import torch.distributed.checkpoint as dcp

    dcp.save(_state(model, optimizer), checkpoint_id=folder)


def load_shares(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Go back to what `save_shares` wrote."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    state = _state(model, optimizer)
    dcp.load(state, checkpoint_id=folder)
    weights, moments = state.values()
    options = StateDictOptions(strict=False)  # what is frozen is not in it
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=options)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(ignore_frozen_params=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    return {"weights": weights, "optimizer": moments}


def gather(model: nn.Module, *, here: bool) -> None:
    """Give the model of the process that is `here` whole weights, in main memory; all processes take part.

    For writing them: none can run afterwards.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    for name, parameter in list(model.named_parameters()) if here else ():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(weights[name], parameter.requires_grad))
