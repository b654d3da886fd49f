"""The reference's loaders, registries and builder."""

import hashlib
import threading

import pytest
import torch
from torch import nn

from ltx_core import loader
from ltx_core.errors import CheckpointError
from ltx_core.loader import (
    Checkpoint,
    DummyRegistry,
    ModuleOps,
    SafetensorsModelStateDictLoader,
    SafetensorsStateDictLoader,
    SDOps,
    SingleGPUModelBuilder,
    StateDict,
    StateDictRegistry,
    build_model,
)
from ltx_core.quantization import QuantizationPolicy

OFFICIAL_NAMES = {
    "LTXV_LORA_COMFY_RENAMING_MAP",
    "ContentMatching",
    "ContentReplacement",
    "DummyRegistry",
    "KeyValueOperation",
    "KeyValueOperationResult",
    "LoRAAdaptableProtocol",
    "LoraPathStrengthAndSDOps",
    "LoraStateDictWithStrength",
    "ModelBuilderProtocol",
    "ModuleOps",
    "Registry",
    "SDKeyValueOperation",
    "SDOps",
    "SafetensorsModelStateDictLoader",
    "SafetensorsStateDictLoader",
    "SingleGPUModelBuilder",
    "StateDict",
    "StateDictLoader",
    "StateDictRegistry",
    "apply_loras",
}
BOTH = [DummyRegistry, StateDictRegistry]


def test_the_official_names_are_importable():
    assert set(loader.__all__) >= OFFICIAL_NAMES
    assert all(hasattr(loader, name) for name in loader.__all__)


def builder(files, **options) -> SingleGPUModelBuilder:
    return SingleGPUModelBuilder(files.Configurator, files.model(), files.MAP, **options)


def test_state_dicts_know_their_footprint():
    state = StateDict.of({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)})
    assert state.footprint() == (16, torch.device("cpu"))
    assert state.dtype == {torch.float32, torch.bfloat16}
    assert StateDict.of({}).footprint() == (0, torch.device("cpu"))


def test_loaders_rename_and_keep_the_files_dtype(files):
    state = SafetensorsStateDictLoader().load(files.model(), files.MAP)
    expected = files.tensors()
    assert set(state.sd) == set(expected)
    assert all(torch.equal(state.sd[name], value) for name, value in expected.items())
    assert len(SafetensorsStateDictLoader().load([files.model()]).sd) == len(expected)


def test_only_the_model_loader_has_a_configuration(files):
    assert SafetensorsModelStateDictLoader().metadata(files.model()) == {"width": 16}
    with pytest.raises(NotImplementedError):
        SafetensorsStateDictLoader().metadata(files.model())


def test_a_registry_is_known_by_files_and_map_name(tmp_path):
    registry, state = StateDictRegistry(), StateDict.of({})
    registry.add(["a", "b"], SDOps("x"), state)
    assert registry.get(["a", "b"], SDOps("x").with_matching()) is state
    assert registry.get(["a"], SDOps("x")) is None
    assert registry.get(["a", "b"], None) is None
    with pytest.raises(ValueError, match="already has a, b"):
        registry.add(["a", "b"], SDOps("x"), state)
    assert registry.pop(["a", "b"], SDOps("x")) is state
    assert registry.pop(["a", "b"], SDOps("x")) is None
    one = str(tmp_path / "one")
    added = registry.add([one], SDOps("x"), state)
    assert [added] == list(registry._kept) == [hashlib.sha256(f"{one}\0x".encode()).hexdigest()]
    registry.clear()
    assert registry.get([one], SDOps("x")) is None


def test_of_many_threads_that_add_one_wins():
    registry, outcomes = StateDictRegistry(), []

    def add() -> None:
        try:
            registry.add(["a"], None, StateDict.of({}))
            outcomes.append(True)
        except ValueError:
            outcomes.append(False)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcomes) == 1


def test_the_dummy_keeps_nothing():
    registry = DummyRegistry()
    registry.add(["a"], None, StateDict.of({}))
    assert registry.get(["a"], None) is None
    assert registry.pop(["a"], None) is None
    registry.clear()


@pytest.mark.parametrize("registry", BOTH)
@pytest.mark.parametrize("dtype", [None, torch.float32], ids=str)
def test_a_build_is_the_same_with_and_without_a_registry(files, registry, dtype):
    model = builder(files, registry=registry()).build(dtype=dtype)
    expected = files.tensors()
    assert not model.training
    for name, value in model.state_dict().items():
        cast = dtype is not None and expected[name].is_floating_point()
        assert torch.equal(value, expected[name].to(dtype if cast else expected[name].dtype))


def test_a_registry_is_filled_once_and_its_tensors_stay_clean(files):
    registry = StateDictRegistry()
    made = builder(files, registry=registry).lora(files.lora(), 1.0)
    first, second = made.build(), made.build()
    assert torch.equal(first.patchify_proj.weight, second.patchify_proj.weight)
    assert not torch.equal(first.patchify_proj.weight, files.tensors()["patchify_proj.weight"])
    for value in first.state_dict().values():
        value.zero_()
    [state] = registry._kept.values()
    assert all(torch.equal(state.sd[name], value) for name, value in files.tensors().items())


def test_a_builder_is_a_value_and_lora_gives_a_new_one(files):
    base = builder(files)
    more = base.lora("some.safetensors", 0.5)
    assert base.loras == ()
    assert [(lora.path, lora.strength) for lora in more.loras] == [("some.safetensors", 0.5)]
    assert more.loras[0].sd_ops is loader.LTXV_LORA_COMFY_RENAMING_MAP
    assert base.model_config() == {"width": 16}


def test_the_steps_of_a_build_can_be_called_one_by_one(files):
    base, registry = builder(files), StateDictRegistry()
    wanted, unwanted = (
        ModuleOps(name, lambda module, wanted=wanted: wanted, lambda module: nn.Sequential(module))
        for name, wanted in (("wanted", True), ("unwanted", False))
    )
    changed = base.meta_model(base.model_config(), (wanted, unwanted))
    assert isinstance(changed, nn.Sequential)
    assert not isinstance(changed[0], nn.Sequential)
    assert {parameter.device.type for parameter in changed.parameters()} == {"meta"}
    state = base.load_sd([files.model()], registry, sd_ops=files.MAP)
    assert set(state.sd) == set(files.tensors())
    assert base.load_sd([files.model()], registry, sd_ops=files.MAP) is state


def test_loras_of_strength_zero_are_not_opened(files):
    model = builder(files).lora("no such file", 0.0).build()
    assert torch.equal(model.patchify_proj.weight, files.tensors()["patchify_proj.weight"])


def test_a_missing_checkpoint_and_an_incomplete_one(files):
    with pytest.raises(FileNotFoundError):
        SingleGPUModelBuilder(files.Configurator, "nowhere.safetensors", files.MAP).build()
    path = files.model(patchify_proj__bias=None)
    with pytest.raises(CheckpointError, match=r"patchify_proj\.bias"):
        SingleGPUModelBuilder(files.Configurator, path, files.MAP).build()


@pytest.mark.parametrize("registry", BOTH)
def test_a_policys_fields_work_the_official_way(files, registry):
    policy = QuantizationPolicy.fp8_cast()
    made = SingleGPUModelBuilder(
        files.Configurator,
        (files.model(),),
        files.MAP.chain(policy.sd_ops),
        policy.module_ops,
        registry=registry(),
    )
    model, layer = made.build(), "transformer_blocks.0.attn1.to_q"
    to_q = model.get_submodule(layer)
    assert to_q.weight.dtype is torch.float8_e4m3fn
    expected = files.tensors()
    x = torch.randn(3, 16)
    weight, bias = (
        expected[f"{layer}.{part}"].to(torch.float8_e4m3fn).float() for part in ("weight", "bias")
    )
    assert torch.equal(to_q(x), torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize("registry", BOTH)
def test_scaled_weights_are_widened_before_they_are_cast_again(files, registry):
    policy, path = QuantizationPolicy.fp8_cast(), files.scaled_model()
    made = SingleGPUModelBuilder(
        files.Configurator, path, files.MAP.chain(policy.sd_ops), policy.module_ops, registry=registry()
    )
    expected = build_model(files.Configurator, Checkpoint(path), files.MAP, policy=policy).state_dict()
    for _ in range(2):
        for name, value in made.build().state_dict().items():
            assert value.dtype is expected[name].dtype
            assert torch.equal(value.float(), expected[name].float())
