"""Switching LoRA sets in place: always the weights of a fresh build, without reading anything again."""

import gc
import itertools
import multiprocessing
import os
import shutil
import sys
from functools import partial

import pytest
import torch

from ltx_core.errors import CheckpointError
from ltx_core.loader import (
    Checkpoint,
    LoraPathStrengthAndSDOps,
    LoraSwitcher,
    build_model,
    stream_model,
)
from ltx_core.loader import switch as switch_module
from ltx_core.quantization import QuantizationPolicy

BLOCK = "transformer_blocks.1.attn1"
KINDS = {
    "float32": ("model", torch.float32, None),
    "bfloat16": ("model", torch.bfloat16, None),
    "fp8-cast": ("model", torch.bfloat16, QuantizationPolicy.fp8_cast()),
    "fp8-scaled-mm": ("scaled_model", torch.bfloat16, QuantizationPolicy.fp8_scaled_mm()),
}


@pytest.fixture
def loras(files):
    """Two LoRAs that share a layer, at three strengths."""
    first = files.lora("1.safetensors", ("patchify_proj", f"{BLOCK}.to_q"), seed=1)
    second = files.lora(
        "2.safetensors", (f"{BLOCK}.to_q", f"{BLOCK}.to_gate_logits"), dtype=torch.float32, seed=2
    )
    return [
        LoraPathStrengthAndSDOps(path, strength)
        for path, strength in ((first, 1.0), (second, -0.5), (first, 0.3))
    ]


@pytest.fixture(params=["main memory", "device"], autouse=True)
def place(request, monkeypatch):
    """Where the model rests: what is done on a GPU is tried on the CPU as well."""
    if request.param == "device":
        monkeypatch.setattr(switch_module, "in_main_memory", lambda weight: False)
    return request.param


def build(files, kind="bfloat16", fill=None):
    write, dtype, policy = KINDS[kind]
    return build_model(
        files.Configurator, Checkpoint(getattr(files, write)()), files.MAP, "cpu", dtype, policy, fill
    )


def bits(model) -> dict[str, torch.Tensor]:
    """All tensors, as bytes: equal only if they are equal bit for bit."""
    return {
        name: value.detach().clone().reshape(-1).view(torch.uint8)
        for name, value in model.state_dict().items()
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sequence_of_sets_gives_the_weights_of_a_fresh_build(files, loras, kind):
    sets = [(), (loras[0],), (loras[1], loras[0]), (loras[0], loras[1]), (loras[2],)]
    fresh = []
    for wanted in sets:
        model = build(files, kind)
        LoraSwitcher(model).apply(wanted)
        fresh.append(bits(model))
    assert not any(same(a, b) for a, b in itertools.combinations([fresh[i] for i in (0, 1, 2, 4)], 2))
    model = build(files, kind)
    switcher = LoraSwitcher(model)
    for i in (1, 0, 2, 4, 3, 1, 2, 0, 0, 3, 4, 0):
        switcher.apply(sets[i])
        assert same(bits(model), fresh[i])


def computed(model) -> dict[str, torch.Tensor]:
    """All tensors; those of the blocks as they are while the blocks compute."""
    found = {name: value for name, value in bits(model).items() if "transformer_blocks" not in name}
    for index, block in enumerate(model.transformer_blocks):
        hook = block.register_forward_pre_hook(
            lambda block, given, prefix=f"{index}.": found.update(
                {prefix + name: value for name, value in bits(block).items()}
            )
        )
        block(torch.zeros(1))
        hook.remove()
    return found


@pytest.mark.parametrize("rest", ["cpu", "disk"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_wait_elsewhere_are_fused_on_arrival(files, loras, kind, rest):
    resident = build(files, kind)
    streamed = build(files, kind, partial(stream_model, blocks="transformer_blocks", rest=rest))
    at_rest = streamed.transformer_blocks.state_dict(keep_vars=True)
    switchers = [LoraSwitcher(model) for model in (resident, streamed)]
    for wanted in (loras[:1], loras, [], loras[1:]):
        for switcher in switchers:
            switcher.apply(wanted)
        assert same(computed(resident), computed(streamed))
        for name, value in streamed.transformer_blocks.state_dict(keep_vars=True).items():
            assert value is at_rest[name]


@pytest.mark.parametrize("rest", ["cpu", "disk"])
def test_blocks_go_back_to_rest_after_a_pass_that_failed(files, rest):
    def fails(x):
        raise RuntimeError("out of memory")

    streamed = build(files, fill=partial(stream_model, blocks="transformer_blocks", rest=rest))
    block = streamed.transformer_blocks[0]
    at_rest, block.forward = block.state_dict(keep_vars=True), fails
    with pytest.raises(RuntimeError, match="out of memory"):
        block(torch.zeros(1))
    assert all(value is at_rest[name] for name, value in block.state_dict(keep_vars=True).items())
    # And the next pass begins with this block, though the one after it has been sent for.
    block.forward = lambda x: block.attn1.to_q.weight.clone()
    assert torch.equal(block(torch.zeros(1)), files.tensors()["transformer_blocks.0.attn1.to_q.weight"])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="a system without fork")
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("place", ["main memory"], indirect=True)
def test_blocks_arrive_in_a_forked_process_too(files):
    model = build(files, fill=partial(stream_model, blocks="transformer_blocks", rest="disk"))
    expected = computed(model)

    def check():
        assert same(computed(model), expected)

    process = multiprocessing.get_context("fork").Process(target=check)
    process.start()
    process.join(30)
    process.kill()  # one that waits for ever
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("rest", ["cpu", "disk"])
def test_a_block_that_is_interrupted_rests_again(files, loras, rest):
    """PyTorch calls no hook after Ctrl-C."""
    model = build(files, fill=partial(stream_model, blocks="transformer_blocks", rest=rest))
    at_rest = model.transformer_blocks.state_dict(keep_vars=True)
    LoraSwitcher(model).apply(loras)
    expected = computed(model)
    for block in model.transformer_blocks:

        def interrupt(*arguments):
            raise KeyboardInterrupt

        hook = block.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            computed(model)
        hook.remove()
        assert same(computed(model), expected)
    for name, value in model.transformer_blocks.state_dict(keep_vars=True).items():
        assert value is at_rest[name]


@pytest.mark.parametrize("beside", [None, (torch.device("cpu"), torch.float32)], ids=["fused", "beside"])
def test_an_interrupted_switch_is_undone_by_the_next_one(files, loras, beside):
    """Wherever Ctrl-C comes: here at every line of the switcher in turn."""
    model = build(files, "float32")
    layer, line = model.get_submodule(f"{BLOCK}.to_q"), 0

    def computes():
        with torch.no_grad():
            return layer(torch.eye(layer.in_features))

    clean, left = computes(), itertools.count()

    def trace(frame, event, argument):
        if frame.f_code.co_filename != switch_module.__file__:
            return None
        if event == "line" and next(left) == line:
            raise KeyboardInterrupt
        return trace

    def interrupted(switcher) -> bool:
        nonlocal left
        left, tracer = itertools.count(), sys.gettrace()
        sys.settrace(trace)
        try:
            switcher.apply(loras[:2])
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(tracer)
        return False

    switcher = LoraSwitcher(model, beside)
    while interrupted(switcher):
        switcher.apply([])
        assert torch.equal(computes(), clean)
        switcher, line = LoraSwitcher(model, beside), line + 1
    assert not torch.equal(computes(), clean)
    assert line > 50


def test_the_parameters_stay_the_same_objects(files, loras):
    model = build(files)
    parameters = dict(model.named_parameters())
    LoraSwitcher(model).apply(loras)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_on_a_device_the_tensors_stay_where_they_are(files, loras, place):
    model = build(files)

    def places():
        return {name: value.data_ptr() for name, value in model.state_dict().items()}

    before, switcher = places(), LoraSwitcher(model)
    switcher.apply(loras)
    assert (places() == before) == (place == "device")
    switcher.apply([])
    assert places() == before


def test_in_main_memory_the_last_set_comes_back_without_being_fused_again(files, loras, place, monkeypatch):
    switcher, calls, fuse = LoraSwitcher(build(files)), [], switch_module.fuse
    monkeypatch.setattr(
        switch_module, "fuse", lambda *given, **options: calls.append(1) or fuse(*given, **options)
    )
    switcher.apply(loras[:1])
    made = len(calls)
    for _ in range(2):
        switcher.apply([])
        switcher.apply(loras[:1])
    assert len(calls) == (made if place == "main memory" else 3 * made)


def test_a_layer_has_two_weights_at_most(files, loras):
    """However many sets it has seen: a clean one, and the last fused one."""

    def weights():
        gc.collect()
        objects = [value for value in gc.get_objects() if type(value) in (torch.Tensor, torch.nn.Parameter)]
        shapes = [(value.data_ptr(), value.shape) for value in objects if not value.is_meta]
        return {place for place, shape in shapes if shape == target}

    model = build(files)
    target, switcher = model.get_submodule(f"{BLOCK}.to_q").weight.shape, LoraSwitcher(model)
    before = len(weights())
    for wanted in (loras[:1], loras[1:2], [], loras[:2], loras[2:]):
        switcher.apply(wanted)
        assert len(weights()) == before + 1


def test_only_touched_layers_are_kept_clean(files, loras):
    switcher = LoraSwitcher(build(files))
    switcher.apply([])
    assert not switcher._clean
    switcher.apply(loras[:1])
    assert set(switcher._clean) == {"patchify_proj", f"{BLOCK}.to_q"}


def test_going_back_and_forth_reads_nothing(files, loras, monkeypatch):
    model = build(files)
    switcher = LoraSwitcher(model)
    one, two = [loras[0]], [loras[0], loras[1], loras[2]]  # as the stages of a pipeline
    switcher.apply(one)
    switcher.apply(two)
    reads = []
    monkeypatch.setattr(Checkpoint, "read", lambda *arguments: reads.append(arguments))
    monkeypatch.setattr(Checkpoint, "__init__", lambda *arguments: reads.append(arguments))
    for wanted in (one, two, two, one, one, two):
        switcher.apply(wanted)
    assert not reads


def test_files_that_are_out_of_use_are_let_go(files, loras):
    switcher = LoraSwitcher(build(files))
    for wanted in (loras[:1], loras[1:2], []):
        switcher.apply(wanted)
    assert {key.path for key in switcher._files} == {loras[1].path}
    switcher.apply(loras[2:])
    assert {key.path for key in switcher._files} == {loras[2].path}


@pytest.mark.parametrize("beside", [None, (torch.device("cpu"), torch.bfloat16)], ids=["fused", "beside"])
def test_a_file_that_was_written_anew_is_read_anew(files, loras, beside, tmp_path):
    path = tmp_path / "trained.safetensors"
    wanted, found = [LoraPathStrengthAndSDOps(str(path), 1.0)], []
    model = build(files)
    switcher = LoraSwitcher(model, beside)
    layer = model.get_submodule(f"{BLOCK}.to_q")
    x = torch.ones(1, layer.in_features, dtype=torch.bfloat16)
    for number, lora in enumerate((*loras[:2], loras[0])):
        shutil.copy(lora.path, path)
        os.utime(path, ns=(number, number))
        switcher.apply(wanted)
        found.append(layer(x))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_is_returned_tells_how_each_lora_fits(files, loras):
    matches = LoraSwitcher(build(files)).apply(loras[:2])
    assert [len(match.modules) for match in matches] == [2, 2]
    assert [match.path for match in matches] == [loras[0].path, loras[1].path]


def test_strength_zero_is_no_lora_and_its_file_is_not_opened(files):
    model = build(files)
    before = bits(model)
    assert LoraSwitcher(model).apply([LoraPathStrengthAndSDOps("no such file", 0.0)]) == ()
    assert same(before, bits(model))


def test_a_file_that_does_not_fit_changes_nothing(files, loras):
    model = build(files)
    switcher = LoraSwitcher(model)
    switcher.apply(loras[:1])
    before = bits(model)
    strange = files.write("strange.safetensors", {"x.lora_A.weight": torch.ones(1, 1)})
    for path in (strange, str(files.folder / "missing.safetensors")):
        with pytest.raises(CheckpointError):
            switcher.apply([loras[1], LoraPathStrengthAndSDOps(path)])
        assert same(before, bits(model))


@pytest.mark.parametrize("failing", range(3))
def test_a_failure_midway_leaves_a_switcher_that_recovers(files, loras, monkeypatch, failing):
    model = build(files)
    clean, switcher, calls = bits(model), LoraSwitcher(model), itertools.count()
    fuse = switch_module.fuse

    def fails(*arguments, **options):
        if next(calls) == failing:
            raise MemoryError
        return fuse(*arguments, **options)

    monkeypatch.setattr(switch_module, "fuse", fails)
    with pytest.raises(MemoryError):
        switcher.apply(loras[:2])
    switcher.apply([])
    assert same(bits(model), clean)
    switcher.apply(loras[:2])
    other = build(files)
    LoraSwitcher(other).apply(loras[:2])
    assert same(bits(model), bits(other))


@pytest.mark.parametrize("place", ["device"], indirect=True)
def test_a_failure_while_a_weight_is_written_is_undone_by_the_next_set(files, loras, monkeypatch):
    model = build(files)
    clean, switcher, copy = bits(model), LoraSwitcher(model), torch.Tensor.copy_

    def writes_and_fails(self, other):
        copy(self, other)
        raise RuntimeError("device lost")

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "copy_", writes_and_fails)
        with pytest.raises(RuntimeError, match="device lost"):
            switcher.apply(loras[:1])
    assert not same(bits(model), clean)
    switcher.apply([])
    assert same(bits(model), clean)


def test_inference_mode_around_a_switch_leaves_ordinary_tensors(files, loras):
    model = build(files)
    switcher = LoraSwitcher(model)
    with torch.inference_mode():
        switcher.apply(loras[:1])
    assert not any(parameter.is_inference() for parameter in model.parameters())
    switcher.apply([])


class TestBesideTheWeights:
    """What a set adds to a layer's output is computed with every call; weights stay clean."""

    CPU = torch.device("cpu")

    def outputs(self, model) -> list[torch.Tensor]:
        """What every linear layer makes of the same input: each column of its weight, and its bias."""
        layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
        with torch.no_grad():
            return [layer(torch.eye(layer.in_features)) for layer in layers]

    def test_layers_compute_what_fused_ones_do(self, files):
        modules = ("patchify_proj", f"{BLOCK}.to_q"), (f"{BLOCK}.to_q", f"{BLOCK}.to_gate_logits")
        paths = [files.lora(f"{i}.safetensors", modules[i], dtype=torch.float32, seed=i) for i in range(2)]
        one, two, weak = (LoraPathStrengthAndSDOps(paths[i], s) for i, s in ((0, 1.0), (1, -0.5), (0, 0.3)))
        fused, beside = build(files, "float32"), build(files, "float32")
        clean, seen = bits(beside), []
        switchers = LoraSwitcher(fused), LoraSwitcher(beside, (self.CPU, torch.float32))
        for wanted in ((one,), (two, one), (), (weak,), (weak, two), (one,)):
            for switcher in switchers:
                switcher.apply(wanted)
            seen.append(self.outputs(beside))
            torch.testing.assert_close(seen[-1], self.outputs(fused))
            assert same(bits(beside), clean)
        answers = [torch.cat([output.flatten() for output in outputs]) for outputs in seen]
        assert torch.equal(answers[0], answers[-1])
        assert not any(torch.allclose(*pair) for pair in itertools.combinations(answers[:-1], 2))

    @pytest.mark.parametrize("kind", ["bfloat16", "fp8-cast", "fp8-scaled-mm"])
    def test_narrow_weights_stay_as_they_are(self, files, kind):
        name = f"{BLOCK}.to_q"
        path, model = files.lora("1.safetensors", (name,), seed=1), build(files, kind)
        layer, clean, columns = model.get_submodule(name), bits(model), torch.eye(16, dtype=torch.bfloat16)
        with torch.no_grad():
            before = layer(columns)
            switcher = LoraSwitcher(model, (self.CPU, torch.bfloat16))
            switcher.apply([LoraPathStrengthAndSDOps(path, 0.5)])
            down, up, scale = self.hooks(model)[0].pairs[0]
            added, expected = layer(columns) - before, scale * (down.float().T @ up.float().T)
        assert same(bits(model), clean)
        assert scale == 0.5
        # Two roundings to 8 bits of fraction: of the output, and of what is in between.
        torch.testing.assert_close(added.float(), expected, rtol=0, atol=2**-7 * float(expected.abs().max()))

    def test_going_back_and_forth_reads_and_casts_nothing(self, files, loras, monkeypatch):
        switcher = LoraSwitcher(build(files, "bfloat16"), (self.CPU, torch.bfloat16))
        one, two = loras[:1], loras  # the second LoRA is a float32 file
        switcher.apply(one)
        switcher.apply(two)
        work = []
        for owner, name in ((Checkpoint, "read"), (Checkpoint, "__init__"), (torch.Tensor, "copy_")):
            monkeypatch.setattr(owner, name, lambda *arguments: work.append(arguments))
        places = {pair.up.data_ptr() for pair in switcher._pairs.values()}
        for wanted in (one, two, (), two):
            switcher.apply(wanted)
        assert not work
        pairs = [pair for hook in self.hooks(switcher.model) for pair in hook.pairs]
        assert len(pairs) == 6
        assert {pair.up.data_ptr() for pair in pairs} <= places
        assert {pair.up.dtype for pair in pairs} == {torch.bfloat16}

    def hooks(self, model) -> list:
        return [hook for module in model.modules() for hook in module._forward_hooks.values()]

    def test_a_clean_model_has_no_branches(self, files, loras):
        switcher = LoraSwitcher(build(files, "float32"), (self.CPU, torch.float32))
        switcher.apply(loras)
        assert len(self.hooks(switcher.model)) == 3
        switcher.apply([])
        assert not self.hooks(switcher.model)

    def test_a_failure_midway_leaves_a_switcher_that_recovers(self, files, loras, monkeypatch):
        model = build(files, "float32")
        switcher, calls = LoraSwitcher(model, (self.CPU, torch.float32)), itertools.count()
        clean, read = self.outputs(model), switch_module.LoraFile.read

        def fails(*arguments):
            if next(calls) == 2:
                raise MemoryError
            return read(*arguments)

        monkeypatch.setattr(switch_module.LoraFile, "read", fails)
        with pytest.raises(MemoryError):
            switcher.apply(loras[:2])
        switcher.apply([])
        assert all(torch.equal(x, y) for x, y in zip(self.outputs(model), clean))
