"""From file to module: exactly the needed tensors, once each, in their final form; or one clear sentence."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader import Checkpoint, KeyValueOperationResult, SDOps, build_model, tensor_bytes
from ltx_core.loader.module_ops import ModuleOps
from ltx_core.quantization import QuantizationPolicy


def build(files, path=None, **options):
    return build_model(files.Configurator, Checkpoint(path or files.model()), files.MAP, "cpu", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None], ids=str)
def test_a_module_holds_the_files_tensors_in_the_asked_dtype(files, dtype):
    model = build(files, dtype=dtype)
    expected = files.tensors()
    assert not model.training
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert not tensor.requires_grad
        kept = expected[name].dtype if dtype is None or not expected[name].is_floating_point() else dtype
        assert tensor.dtype is kept
        assert torch.equal(tensor, expected[name].to(kept))


def test_each_needed_tensor_is_read_once_and_no_other(files):
    tensors = files.tensors() | {"video_embeddings_connector.registers": torch.ones(100)}
    named = {files.PREFIX + key: value for key, value in tensors.items()} | {"vae.encoder.x": torch.ones(50)}
    checkpoint = Checkpoint(files.write("x.safetensors", named, config='{"width": 16}'))
    build_model(files.Configurator, checkpoint, files.MAP, "cpu", torch.float32)
    assert checkpoint.bytes_read == sum(tensor.nbytes for tensor in files.tensors().values())


def test_building_takes_hardly_more_memory_than_the_result(files):
    """Measured by the system, in a process of its own."""
    pytest.importorskip("resource")
    tensors = {f"layers.{i}.weight": torch.ones(1024, 2048, dtype=torch.bfloat16) for i in range(24)}
    path = files.write("big.safetensors", tensors)
    script = f"""
import resource, torch
from torch import nn
from ltx_core.loader import Checkpoint, build_model
with torch.device("meta"):
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(2048, 1024, bias=False) for _ in range(24))
unit = 1 if {sys.platform == "darwin"} else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
before = peak()
model = build_model(model, Checkpoint({path!r}), None, "cpu", torch.bfloat16)
print((peak() - before) / sum(p.nbytes for p in model.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.1


def test_a_module_on_the_meta_device_serves_as_well_as_a_configurator(files):
    with torch.device("meta"):
        model = files.Network(16)
    assert build_model(model, Checkpoint(files.model()), files.MAP, "cpu") is model
    assert torch.equal(model.patchify_proj.weight, files.tensors()["patchify_proj.weight"])


def test_missing_tensors_are_counted_and_named(files):
    path = files.model(patchify_proj__weight=None, patchify_proj__bias=None)
    with pytest.raises(CheckpointError, match=r"lacks 2 of the \d+ tensors.*patchify_proj\.weight") as caught:
        build(files, path)
    assert path in str(caught.value)


def test_a_file_of_another_kind_of_model(files):
    path = files.write("other.safetensors", {"x": torch.ones(1)}, config='{"width": 16}')
    with pytest.raises(CheckpointError, match="another kind of model"):
        build(files, path)


def test_a_misshapen_tensor_is_named_with_both_shapes(files):
    path = files.model(patchify_proj__weight=torch.ones(16, 5))
    with pytest.raises(CheckpointError) as caught:
        build(files, path)
    assert f"{path}: {files.PREFIX}patchify_proj.weight has shape (16, 5)" in str(caught.value)
    assert "(16, 16)" in str(caught.value)


def test_a_configuration_error_names_the_file(files):
    path = files.write("x.safetensors", {"x": torch.ones(1)}, config='{"other": 1}')
    with pytest.raises(ConfigError, match=r"x\.safetensors: config\.width is missing"):
        build(files, path)


@pytest.mark.parametrize("width", ["-1", "null", "[]"])
def test_a_configuration_of_which_no_network_can_be_made(files, width):
    path = files.write("x.safetensors", {"x": torch.ones(1)}, config=f'{{"width": {width}}}')
    with pytest.raises(ConfigError, match=r"x\.safetensors: no network can be made of the configuration \("):
        build(files, path)


def test_a_file_without_configuration_is_said_to_be_no_model(files):
    with pytest.raises(ConfigError, match=r"lora\.safetensors: the file carries no model configuration"):
        build(files, files.lora())


def test_files_may_leave_out_buffers_that_have_a_value(files):
    model = files.Network(16).to("meta")
    model.register_buffer("kernel", torch.full((2,), 7.0))
    build_model(model, Checkpoint(files.model()), files.MAP, "cpu", torch.bfloat16)
    assert torch.equal(model.kernel, torch.full((2,), 7.0))


def test_a_lazy_layer_takes_its_shape_from_the_file(files):
    with torch.device("meta"):
        model = nn.Sequential(nn.LazyLinear(3))
    values = {"0.weight": torch.randn(3, 7), "0.bias": torch.randn(3)}
    build_model(model, Checkpoint(files.write("x.safetensors", values)), None, "cpu")
    x = torch.randn(2, 7)
    assert torch.equal(model(x), nn.functional.linear(x, values["0.weight"], values["0.bias"]))


def test_key_value_operations_change_values_names_and_shapes(files):
    def operation(key, value):
        return [KeyValueOperationResult("weight", value.t()), KeyValueOperationResult("bias", value[:, 0])]

    ops = SDOps("x").with_matching().with_kv_operation(operation, key_prefix="stored")
    stored = torch.randn(5, 5)
    checkpoint = Checkpoint(files.write("x.safetensors", {"stored": stored}))
    model = build_model(nn.Linear(5, 5, device="meta"), checkpoint, ops, "cpu")
    assert torch.equal(model.weight, stored.t())
    assert torch.equal(model.bias, stored[:, 0])
    assert checkpoint.bytes_read == stored.nbytes


def test_key_value_operations_see_the_dtype_of_the_file(files):
    def turn(key, value):
        turned = value.t() if value.dtype is torch.bfloat16 else value
        return [KeyValueOperationResult(key, turned)]

    ops = SDOps("x").with_matching().with_kv_operation(turn, key_prefix="weight")
    stored = {"weight": torch.randn(5, 3, dtype=torch.bfloat16), "bias": torch.randn(3)}
    checkpoint = Checkpoint(files.write("x.safetensors", stored))
    model = build_model(nn.Linear(5, 3, device="meta"), checkpoint, ops, "cpu", torch.float32)
    assert torch.equal(model.weight, stored["weight"].t().float())


def test_a_dropped_tensor_is_a_missing_one(files):
    ops = files.MAP.with_kv_operation(lambda key, value: [], key_prefix="patchify_proj.bias")
    with pytest.raises(CheckpointError, match=r"lacks 1 .*patchify_proj\.bias"):
        build_model(files.Configurator, Checkpoint(files.model()), ops, "cpu")


def test_a_custom_policy_changes_module_and_tensors(files):
    def narrow(key, value):
        return [KeyValueOperationResult(key, value.to(torch.float16))]

    def mark(model):
        model.marked = True
        return model

    operations = (ModuleOps("mark", lambda model: True, mark), ModuleOps("never", lambda model: False, None))
    policy = QuantizationPolicy(SDOps("half").with_kv_operation(narrow, key_suffix="to_q.weight"), operations)
    model = build(files, dtype=torch.float32, policy=policy)
    assert model.marked
    assert model.transformer_blocks[0].attn1.to_q.weight.dtype is torch.float16
    assert model.transformer_blocks[0].attn1.to_q.bias.dtype is torch.float32


def test_models_built_in_inference_mode_are_ordinary_ones(files):
    with torch.inference_mode():
        model = build(files)
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_the_size_of_a_component_is_told_from_the_header(files):
    checkpoint = Checkpoint(files.model())
    stored = sum(tensor.nbytes for tensor in files.tensors().values())
    assert sum(tensor_bytes(checkpoint, files.MAP, None).values()) == stored
    cast = sum(t.numel() * (4 if t.is_floating_point() else 8) for t in files.tensors().values())
    assert sum(tensor_bytes(checkpoint, files.MAP, torch.float32).values()) == cast
    assert checkpoint.bytes_read == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None], ids=str)
def test_scaled_fp8_weights_are_widened_with_their_scale(files, dtype):
    path = files.scaled_model()
    stored, model = Checkpoint(path), build(files, path, dtype=dtype)
    key = files.PREFIX + "transformer_blocks.0.attn1.to_q.weight"
    wide = stored.read(key).float() * stored.read(f"{key}_scale")
    weight = model.transformer_blocks[0].attn1.to_q.weight
    assert weight.dtype is (dtype or torch.bfloat16)
    assert torch.equal(weight, wide.to(weight.dtype))


def test_a_scale_that_is_neither_one_number_nor_one_of_each_row_is_refused(files):
    weight = torch.ones(32, 16).to(torch.float8_e4m3fn)
    tensors = {
        "transformer_blocks__0__attn1__to_q__weight": weight,
        "transformer_blocks__0__attn1__to_q__weight_scale": torch.ones(1, 16),
    }
    with pytest.raises(CheckpointError, match=r"to_q\.weight_scale has shape \(1, 16\)"):
        build(files, files.model(**tensors))


def test_the_configuration_is_the_first_files(files):
    tensors = files.tensors()
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    config = json.dumps({"width": 16})
    paths = [
        files.write(f"{i}.safetensors", half, config=config if i == 0 else "{}")
        for i, half in enumerate(halves)
    ]
    model = build_model(files.Configurator, Checkpoint(paths), None, "cpu")
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


def test_the_size_of_a_component_heeds_what_is_cast(files):
    checkpoint, policy = Checkpoint(files.model()), QuantizationPolicy.fp8_cast()
    model = build(files, dtype=torch.bfloat16, policy=policy)
    taken = {name: tensor.nbytes for name, tensor in model.state_dict().items()}
    assert tensor_bytes(checkpoint, files.MAP, torch.bfloat16, policy) == taken
    assert taken != tensor_bytes(checkpoint, files.MAP, torch.bfloat16)
