"""One owner of weights: what is read when, LoRA sets, offloading, threads, cancelling, failures."""

import json
import os
import pickle
import re
import threading
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.errors import CheckpointError, InputError, LTXError
from ltx_core.loader import Checkpoint, save_checkpoint
from ltx_core.model.transformer import LTXModel
from ltx_core.model.transformer.attention import Attention, AttentionFunction
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines import (
    A2VidPipelineTwoStage,
    DistilledPipeline,
    ICLoraPipeline,
    RetakePipeline,
    TI2VidOneStagePipeline,
    TI2VidTwoStagesPipeline,
    memory,
)
from ltx_pipelines.engine import Engine
from ltx_pipelines.events import Cancelled
from ltx_pipelines.plan import describe_plan, passes
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_pipelines.utils.model_paths import ModelPaths

SMALL = {"height": 64, "width": 128, "num_frames": 9, "seed": 5}
STEPS = {"num_inference_steps": 2}


def files(folder):
    return {
        "checkpoint_path": folder / "model.safetensors",
        "gemma_root": folder / "gemma",
        "spatial_upsampler_path": folder / "upsampler.safetensors",
        "distilled_lora": [str(folder / "distilled-lora.safetensors")],
    }


@pytest.fixture
def pipeline(model_folder):
    return TI2VidTwoStagesPipeline(**files(model_folder))


def everything(result):
    return torch.cat(list(result.video)), result.audio.waveform


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.fixture
def read_bytes(monkeypatch):
    """Bytes of tensors read from files so far, in a list with one entry."""
    total, read = [0], Checkpoint.read

    def counted(self, key, *arguments, **keywords):
        total[0] += self.info(key).nbytes
        return read(self, key, *arguments, **keywords)

    monkeypatch.setattr(Checkpoint, "read", counted)
    return total


class TestReading:
    def test_nothing_is_read_before_the_first_call(self, model_folder, read_bytes):
        TI2VidTwoStagesPipeline(**files(model_folder))
        assert read_bytes == [0]

    def test_a_second_call_reads_nothing(self, pipeline, read_bytes):
        first = everything(pipeline("x", **SMALL, **STEPS))
        assert read_bytes[0] > 1_000_000
        read_bytes[0] = 0
        assert same(first, everything(pipeline("x", **SMALL, **STEPS)))
        assert read_bytes == [0]

    def test_kernels_of_16_bits_are_laid_out_for_the_cpu(self, model_folder):
        engine = RetakePipeline(
            model_folder / "model.safetensors", model_folder / "gemma", dtype=torch.bfloat16
        ).engine
        for name in ("video_encoder", "video_decoder"):
            with torch.inference_mode():
                kernel = engine.components.load(name).conv_in.conv.weight
            assert kernel.is_contiguous(memory_format=torch.channels_last_3d)
            assert not kernel.is_inference()  # or nothing could be trained through it

    def test_switching_loras_between_stages_reads_only_the_lora(self, pipeline, model_folder, read_bytes):
        pipeline.engine.check(pipeline("x", dry_run=True, **SMALL))
        pipeline.engine.transformer(())
        read_bytes[0] = 0
        pipeline.engine.transformer(pipeline.distilled_lora)
        assert 0 < read_bytes[0] <= (model_folder / "distilled-lora.safetensors").stat().st_size
        pipeline.engine.transformer(())
        pipeline.engine.transformer(pipeline.distilled_lora)
        assert read_bytes[0] <= (model_folder / "distilled-lora.safetensors").stat().st_size

    def test_only_the_components_of_the_run_are_read(self, model_folder, read_bytes):
        pipeline = TI2VidOneStagePipeline(model_folder / "model.safetensors", model_folder / "gemma")
        pipeline("x", **SMALL, **STEPS)
        loaded = set(pipeline.engine.components.loaded)
        assert "spatial_upsampler" not in loaded
        assert "audio_encoder" not in loaded

    def test_release_gives_all_back_and_the_next_call_loads_again(self, pipeline, read_bytes):
        first = everything(pipeline("x", **SMALL, **STEPS))
        pipeline.engine.release()
        assert not pipeline.engine.components.loaded
        read_bytes[0] = 0
        assert same(first, everything(pipeline("x", **SMALL, **STEPS)))
        assert read_bytes[0] > 0

    def test_what_is_released_is_gone(self, pipeline):
        pipeline("x", **SMALL, **STEPS)  # leaves the distilled LoRA's clean weights behind as well
        loaded = [weakref.ref(loaded.module) for loaded in pipeline.engine.components.loaded.values()]
        weights = weakref.ref(pipeline.engine.transformer().velocity_model)
        pipeline.engine.release()
        assert [ref() for ref in [*loaded, weights]] == [None] * (len(loaded) + 1)

    def test_pipelines_can_share_an_engine(self, pipeline, read_bytes):
        pipeline("x", **SMALL, **STEPS)
        other = TI2VidOneStagePipeline(engine=pipeline.engine)
        list(other("x", **SMALL, **STEPS).video)
        read_bytes[0] = 0
        list(other("x", **SMALL, **STEPS).video)
        assert read_bytes == [0]

    def test_loading_of_large_components_is_told(self, pipeline, monkeypatch, caplog):
        pipeline.engine.release()
        size_of = pipeline.engine.ledger.size_of
        monkeypatch.setattr(
            pipeline.engine.ledger, "size_of", lambda name: 2**30 if name == "transformer" else size_of(name)
        )
        with caplog.at_level("INFO"):
            pipeline("x", **SMALL, **STEPS)
        told = [record.getMessage() for record in caplog.records if "Loading" in record.getMessage()]
        assert told == ["Loading the transformer (1.0 GiB)."]

    def test_prompts_are_encoded_once(self, pipeline, monkeypatch):
        encoded = []
        monkeypatch.setattr(
            "ltx_pipelines.engine.encode_texts",
            lambda texts, encoder, processor: (
                encoded.extend(texts)
                or [processor.process_valid(*encoder.encode_valid(text)) for text in texts]
            ),
        )
        encoding = {"callback": lambda event: event.stage == "encode prompt", "negative_prompt": "no"}
        for prompt in ("a", "b", "a", *map(str, range(20))):
            with pytest.raises(Cancelled, match="stage 1"):
                pipeline(prompt, **encoding, **SMALL, **STEPS)
        assert encoded[:4] == ["a", "no", "b", "0"]
        assert encoded.count("no") == 1

    def test_what_came_before_changes_nothing(self, model_folder):
        """Prompts are encoded in pairs, and alone where the other one is remembered."""
        first, second = (TI2VidTwoStagesPipeline(**files(model_folder)) for _ in range(2))
        expected = everything(first("a long prompt with many words", **SMALL, **STEPS))
        list(second("x", **SMALL, **STEPS).video)
        assert same(expected, everything(second("a long prompt with many words", **SMALL, **STEPS)))


class TestMemory:
    def small_memory(self, monkeypatch, free):
        monkeypatch.setattr(memory, "available_bytes", lambda device: free)

    def test_components_take_turns_where_memory_is_short(self, pipeline, monkeypatch):
        expected = everything(pipeline("x", **SMALL, **STEPS))
        pipeline.engine.release()
        sizes = [pipeline.engine.ledger.size_of(name) for name in ("video_decoder", "transformer")]
        held = pipeline.engine.components.loaded

        def free(device):
            return int(max(sizes) * 3) - sum(pipeline.engine.ledger.size_of(name) for name in held)

        monkeypatch.setattr(memory, "available_bytes", free)
        assert same(expected, everything(pipeline("x", **SMALL, **STEPS)))
        assert len(held) < 6

    @pytest.mark.parametrize("quantization", [None, QuantizationPolicy.fp8_cast()], ids=["plain", "fp8-cast"])
    def test_a_component_takes_what_is_told_of_it(self, model_folder, quantization):
        ledger = TI2VidTwoStagesPipeline(**files(model_folder), quantization=quantization).engine.ledger
        for name in ("transformer", "gemma_embeddings_processor", "video_decoder", "spatial_upsampler"):
            tensors = getattr(ledger, name)().state_dict().values()
            assert ledger.size_of(name) == sum(tensor.nbytes for tensor in tensors)

    def test_loras_beside_a_transformer_are_counted_and_go_with_it(self, model_folder, monkeypatch):
        fused, beside = (TI2VidTwoStagesPipeline(**files(model_folder), fuse_loras=f) for f in (True, False))
        for pipeline in (fused, beside):
            pipeline.engine.check(pipeline("x", dry_run=True, **SMALL))
        tensors = load_file(model_folder / "distilled-lora.safetensors").values()
        lora = sum(tensor.numel() * beside.engine.dtype.itemsize for tensor in tensors)
        for streamed in (False, True):
            sizes = [p.engine.components.size_of("transformer", streamed) for p in (beside, fused)]
            assert sizes[0] - sizes[1] == lora
        decoders = [p.engine.components.size_of("video_decoder") for p in (beside, fused)]
        assert decoders[0] == decoders[1]

        model = beside.engine.transformer(beside.distilled_lora)
        hooks = [hook for part in model.modules() for hook in part._forward_hooks.values()]
        pairs = [weakref.ref(pair.up) for hook in hooks for pair in hook.pairs]
        del model, hooks
        assert pairs
        self.small_memory(monkeypatch, 0)
        beside.engine.components.make_room(beside.device, 1)
        assert not any(pair() is not None for pair in pairs)

    @pytest.mark.parametrize("quantization", [None, QuantizationPolicy.fp8_cast()], ids=["plain", "fp8-cast"])
    def test_what_fused_loras_keep_is_told_before_it_is_kept(self, model_folder, quantization):
        pipeline = TI2VidTwoStagesPipeline(**files(model_folder), quantization=quantization)
        engine, recipe = pipeline.engine, pipeline("x", dry_run=True, **SMALL)
        plan = describe_plan(engine, recipe)
        components = engine.components
        told = components.bytes_kept()
        switcher = engine.transformer(pipeline.distilled_lora).switcher
        assert told == sum(weight.value.nbytes for weight in switcher._clean.values()) > 0
        assert f"weights without the LoRAs {told / 2**20:11.2f} MiB of main memory" in plan
        assert components._held("transformer", engine.device) == components.size_of("transformer") + told
        streamed = TI2VidTwoStagesPipeline(**files(model_folder), offload="disk")
        assert "without the LoRAs" not in describe_plan(streamed.engine, recipe)

    def test_what_fused_loras_keep_decides_where_blocks_wait(self, pipeline, monkeypatch):
        """Also of a transformer that a run without LoRAs has loaded; idle components make room for it."""
        engine, expected = pipeline.engine, everything(pipeline("x", **SMALL, **STEPS))
        recipe = pipeline("x", dry_run=True, **SMALL)
        components = engine.components
        kept, size = components.bytes_kept(), components.size_of("transformer")
        other = components.size_of("text_encoder")

        for total, offload, stays in (
            (size + kept + other, "none", True),
            (size + kept, "none", False),
            (size + kept // 2, "disk", True),
        ):
            engine.release()
            monkeypatch.setattr(memory, "available_bytes", lambda device: None)
            components.load("transformer")
            components.load("text_encoder")
            monkeypatch.setattr(
                memory,
                "available_bytes",
                lambda device, total=total: (
                    total * memory.HEADROOM
                    - sum(components._held(name, device) for name in components.loaded)
                ),
            )
            engine.check(recipe)
            engine.transformer(pipeline.distilled_lora)
            assert components.loaded["transformer"].offload == offload
            assert ("text_encoder" in components.loaded) is stays
            assert same(expected, everything(pipeline("x", **SMALL, **STEPS)))

    @pytest.mark.parametrize("quantization", [None, QuantizationPolicy.fp8_cast()], ids=["plain", "fp8-cast"])
    def test_blocks_from_disk_give_the_same_video(self, model_folder, quantization):
        options = {**files(model_folder), "quantization": quantization}
        resident, streamed = (
            TI2VidTwoStagesPipeline(**options, offload=offload) for offload in ("none", "disk")
        )
        assert same(everything(resident("x", **SMALL, **STEPS)), everything(streamed("x", **SMALL, **STEPS)))
        blocks = streamed.engine.transformer().velocity_model.transformer_blocks
        assert all(parameter.is_meta for parameter in blocks.parameters())
        assert same(everything(resident("y", **SMALL, **STEPS)), everything(streamed("y", **SMALL, **STEPS)))

    def test_texts_are_kept_for_a_stage_where_they_take_an_eighth_or_less(self, pipeline, monkeypatch):
        contexts, mib = pipeline.engine.encode_prompts(["x", "y"]), 2**20
        pipeline.engine.transformer()
        monkeypatch.setattr(LTXModel, "bytes_of_texts", lambda model, tokens, dtype: mib)
        for free, kept in ((None, True), (8 * mib, True), (8 * mib - 1, False)):
            self.small_memory(monkeypatch, free)
            with pipeline.engine.transformer_for_stage((), contexts) as transformer:
                assert transformer._kept.with_texts is kept

    def test_offload_is_chosen_by_what_fits(self):
        gpu, cpu, gib = torch.device("cuda"), torch.device("cpu"), 2**30
        sizes = {"transformer": 40 * gib, "text_encoder": 24 * gib, "video_decoder": 2 * gib}
        plenty = memory.choose_policy(sizes, gpu, 100 * gib)
        assert set(plenty.offload.values()) == {"none"}
        assert "stays loaded" in plenty.sentence
        turns = memory.choose_policy(sizes, gpu, 50 * gib)
        assert set(turns.offload.values()) == {"none"}
        assert "take turns" in turns.sentence
        asked = memory.choose_policy(sizes, gpu, 100 * gib, asked="disk")
        assert asked.offload == {"transformer": "disk", "text_encoder": "disk", "video_decoder": "none"}
        assert memory.choose_policy(sizes, cpu, 100 * gib, asked="cpu").offload["transformer"] == "none"
        short = memory.choose_policy(sizes, cpu, 8 * gib)
        assert short.offload["transformer"] == "disk"

    def test_a_gpu_too_small_streams_from_main_memory_or_disk(self):
        gib, gpu = 2**30, torch.device("cuda")
        sizes = {"transformer": 40 * gib}
        for main, where in ((None, "cpu"), (64 * gib, "cpu"), (16 * gib, "disk")):
            assert memory.choose_policy(sizes, gpu, 16 * gib, main).offload["transformer"] == where

    def test_what_is_kept_in_main_memory_has_to_fit_there(self):
        gib, gpu, cpu = 2**30, torch.device("cuda"), torch.device("cpu")
        sizes, kept = {"transformer": 40 * gib, "vocoder": gib}, {"transformer": 36 * gib}

        def chosen(*places, asked=None):
            return memory.choose_policy(sizes, *places, asked=asked, kept=kept)

        assert chosen(gpu, 80 * gib, 64 * gib).offload["transformer"] == "none"
        assert chosen(gpu, 80 * gib, 32 * gib).offload["transformer"] == "disk"
        assert chosen(cpu, 100 * gib, 100 * gib).offload["transformer"] == "none"
        assert chosen(cpu, 80 * gib, 80 * gib).offload["transformer"] == "disk"
        for places in ((gpu, 80 * gib, 32 * gib), (cpu, 80 * gib, 80 * gib)):
            assert chosen(*places, asked="none").sentence.startswith("Does not fit: transformer alone")
            assert "Alone the transformer would fit: --no-fuse-loras" in chosen(*places).sentence
        for places in ((gpu, 80 * gib, 64 * gib), (gpu, 16 * gib, 16 * gib), (cpu, 16 * gib, 16 * gib)):
            assert "--no-fuse-loras" not in chosen(*places).sentence

    def test_components_take_turns_in_main_memory(self, pipeline, monkeypatch):
        """What waits there for a GPU makes room for the next; what is on the GPU alone stays."""
        components, gpu = pipeline.engine.components, torch.device("cuda")
        sizes = {"text_encoder": 24, "transformer": 40, "vocoder": 1}
        monkeypatch.setattr(components.ledger, "device", gpu)
        monkeypatch.setattr(type(components.ledger), "size_of", lambda ledger, name: sizes[name])
        for name in sizes:
            monkeypatch.setattr(components.ledger, name, lambda **options: torch.nn.Identity())

        def free(device):
            total = 20 if device == gpu else 60
            return total - sum(components._held(name, device) for name in components.loaded)

        monkeypatch.setattr(memory, "available_bytes", free)
        for name in sizes:
            components.load(name)
        assert {name: loaded.offload for name, loaded in components.loaded.items()} == {
            "transformer": "cpu",
            "vocoder": "none",
        }

    def test_idle_components_go_where_a_step_finds_no_room(self, pipeline):
        engine, seen = pipeline.engine, []
        everything(pipeline("x", **SMALL, **STEPS))

        def denoise(needed):
            seen.append(set(engine.components.loaded))
            if len(seen[-1]) > needed:
                raise torch.OutOfMemoryError
            return "done"

        assert engine.with_room(denoise)(1) == "done"
        assert len(seen[0]) > 1
        assert seen[1] == {"transformer"}
        with pytest.raises(torch.OutOfMemoryError):
            engine.with_room(denoise)(0)

    @pytest.mark.parametrize("is_new", [True, False], ids=["new PyTorch", "2.11"])
    def test_pinned_memory_is_given_back(self, is_new, monkeypatch):
        """Else blocks that waited there would leave no room for others to wait."""
        emptied = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("device"))
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: emptied.append("host"), raising=False)
        monkeypatch.setattr(
            torch.accelerator, "empty_host_cache", lambda: emptied.append("new host"), raising=False
        )
        if not is_new:
            monkeypatch.delattr(torch.accelerator, "empty_host_cache")
        memory.cleanup_memory()
        assert emptied == ["device", "new host" if is_new else "host"]

    def test_an_unknown_mode_is_named(self, model_folder):
        with pytest.raises(InputError, match="offload is 'tape'; choose none, cpu or disk"):
            TI2VidOneStagePipeline(offload="tape")


class TestComputing:
    @pytest.mark.parametrize("offload", ["none", "disk"])
    def test_compiled_blocks_give_the_same_video(self, model_folder, offload):
        """The graphs are captured whole; what a backend makes of them is PyTorch's business."""
        guided = {
            f"{stream}_guider_params": MultiModalGuiderParams(
                cfg_scale=2.0, stg_scale=1.0, stg_blocks=[1], modality_scale=2.0
            )
            for stream in ("video", "audio")
        }
        options = {"backend": "eager", "fullgraph": True}
        plain, compiled = (
            TI2VidTwoStagesPipeline(**files(model_folder), offload=offload, compile=compile)
            for compile in (None, options)
        )
        for prompt in ("x", "y"):
            assert same(*(everything(p(prompt, **SMALL, **STEPS, **guided)) for p in (plain, compiled)))

    def test_cuda_graphs_of_streamed_blocks_are_refused_before_any_work(
        self, model_folder, monkeypatch, read_bytes
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        given = files(model_folder) | {"device": "cuda", "compile": {"mode": "reduce-overhead"}}
        with pytest.raises(InputError, match="compile asks for CUDA graphs"):
            TI2VidTwoStagesPipeline(**given, offload="cpu")
        pipeline = TI2VidTwoStagesPipeline(**given)
        recipe = pipeline("x", **SMALL, dry_run=True)
        monkeypatch.setattr(memory, "available_bytes", lambda device: 2**40)
        pipeline.engine.check(recipe)
        monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)  # so blocks would be streamed
        with pytest.raises(InputError, match="compile asks for CUDA graphs"):
            pipeline.engine.check(recipe)
        assert read_bytes == [0]

    @pytest.fixture(scope="class")
    def with_and_without(self, model_folder):
        """Of two prompts, what comes of a fused LoRA, and of none."""
        given = {**files(model_folder), "dtype": torch.float32}
        fused = TI2VidTwoStagesPipeline(**given)
        without = TI2VidTwoStagesPipeline(**{**given, "distilled_lora": ()})
        return {
            prompt: [everything(p(prompt, **SMALL, **STEPS)) for p in (fused, without)]
            for prompt in ("x", "y")
        }

    @pytest.mark.parametrize("options", [{}, {"offload": "disk"}, {"compile": {"backend": "eager"}}], ids=str)
    def test_loras_beside_the_weights_give_the_same_video_but_for_rounding(
        self, model_folder, with_and_without, options
    ):
        given = {**files(model_folder), "dtype": torch.float32}
        beside = TI2VidTwoStagesPipeline(**given, fuse_loras=False, **options)
        for prompt, (expected, other) in with_and_without.items():
            # The second call goes back to the first stage, and there again.
            found = everything(beside(prompt, **SMALL, **STEPS))
            off, changed = ((expected[0].int() - frames.int()).abs() for frames in (found[0], other[0]))
            assert off.max() <= 1
            assert off.float().mean() < 1e-3 < 0.02 < changed.float().mean()
            assert torch.equal(found[1], expected[1])  # the first stage's, which is clean again

    @pytest.mark.parametrize("asked", ["pytorch", None])
    def test_attention_is_that_asked_for_or_the_best(self, model_folder, asked, monkeypatch):
        best = AttentionFunction.DEFAULT if asked else AttentionFunction.PYTORCH
        monkeypatch.setattr("ltx_pipelines.engine.best_attention", lambda device, dtype: best)
        pipeline = TI2VidTwoStagesPipeline(**files(model_folder), attention=asked)
        model = pipeline.engine.transformer().velocity_model
        used = {part.attention_function for part in model.modules() if isinstance(part, Attention)}
        assert used == {AttentionFunction.PYTORCH}

    @pytest.mark.parametrize("size", [1, 2])
    def test_as_many_passes_are_computed_at_once_as_asked_for(self, model_folder, pass_counts, size):
        pipeline = TI2VidTwoStagesPipeline(**files(model_folder), max_batch_size=size)
        pipeline("x", video_guider_params=MultiModalGuiderParams(cfg_scale=2.0), **SMALL, **STEPS)
        assert max(pass_counts) == size

    def test_attention_that_is_not_there_is_named(self):
        with pytest.raises(InputError, match="attention is 'fast'; choose one of pytorch"):
            TI2VidOneStagePipeline(attention="fast")
        with pytest.raises(InputError, match="'sage' needs a package that is not installed"):
            TI2VidOneStagePipeline(attention="sage")


class TestPlan:
    def test_it_tells_tokens_passes_and_memory_and_loads_nothing(self, pipeline, read_bytes):
        recipe = pipeline("x", dry_run=True, num_inference_steps=4, **SMALL)
        text = describe_plan(pipeline.engine, recipe)
        assert "stage 1: 64x32, 9 frames" in text
        assert "4 video and" in text
        assert "transformer" in text
        assert "Fits" in text
        assert read_bytes == [0]

    @pytest.mark.parametrize("name", ["pictures", "sound", "window", "control", "short control"])
    def test_tokens_and_passes_are_those_of_the_run(self, pipeline, name, picture, sound, clip, pass_counts):
        kind, asked = {
            "pictures": (
                TI2VidTwoStagesPipeline,
                {"images": [(str(picture), frame, 1.0) for frame in (0, 8)]} | STEPS,
            ),
            "sound": (A2VidPipelineTwoStage, {"audio_path": sound} | STEPS),
            "window": (RetakePipeline, {"video_path": clip, "start_time": 0.3, "end_time": 0.6} | STEPS),
            "control": (ICLoraPipeline, {"video_conditioning": [(clip, 1.0)]}),
            "short control": (ICLoraPipeline, {"video_conditioning": [(clip, 1.0)], "num_frames": 17}),
        }[name]
        asked = {"prompt": "x"} | ({"seed": 5} if kind is RetakePipeline else SMALL) | asked
        made, events = kind(engine=pipeline.engine), []
        recipe = made(dry_run=True, **asked)
        lines = describe_plan(pipeline.engine, recipe).splitlines()
        made(callback=lambda event: events.append(event) and None, **asked)
        assert sum(pass_counts) == sum(passes(stage) for stage in recipe.stages)
        for number in range(1, len(recipe.stages) + 1):
            line = next(line for line in lines if line.startswith(f"stage {number}: "))
            found = re.search(r"; (\d+)( \+ (\d+) conditioning)? video and (\d+) audio tokens;", line)
            event = next(e for e in events if e.stage == f"stage {number}" and e.video_x0 is not None)
            assert int(found[1]) + int(found[3] or 0) == event.video_x0.shape[1]
            assert int(found[4]) == event.audio_x0.shape[1]

    @pytest.mark.parametrize("skip", [0, 1])
    @pytest.mark.parametrize("sampler", ["res2s", "gradient-estimation", "euler-ancestral"])
    def test_of_other_samplers_too(self, pipeline, pass_counts, sampler, skip):
        guider = MultiModalGuiderParams(cfg_scale=3.0, skip_step=skip)
        asked = {"sampler": sampler, "num_inference_steps": 3, **SMALL}
        asked |= {"video_guider_params": guider, "audio_guider_params": guider}
        recipe = pipeline("x", dry_run=True, **asked)
        pipeline("x", **asked)
        assert sum(pass_counts) == sum(passes(stage) for stage in recipe.stages)


class TestSafety:
    def test_gradients_are_off_in_worker_threads_too(self, pipeline):
        seen = []

        def call():
            torch.set_grad_enabled(True)
            pipeline(
                "x", callback=lambda event: seen.append(torch.is_grad_enabled()) and None, **SMALL, **STEPS
            )

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        assert seen
        assert not any(seen)

    def test_results_do_not_follow_the_callers_modes(self, model_folder, clip):
        """Nor do later ones: contexts, fused LoRAs and tables that a call leaves behind serve others."""
        model, gemma, upsampler, loras = files(model_folder).values()
        first, second = (DistilledPipeline(model, gemma, upsampler, loras) for _ in range(2))

        def results(distilled):
            retake = RetakePipeline(engine=distilled.engine)(clip, "x", 0.1, 0.5, seed=5, **STEPS)
            return *everything(distilled("x", **SMALL)), *everything(retake)

        expected = results(first)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
                strange = results(second)
        finally:
            torch.set_default_dtype(torch.float32)
        assert same(strange, expected)
        assert same(results(second), expected)

    def test_decoding_outside_of_the_call_tracks_no_gradients(self, pipeline):
        result = pipeline("x", **SMALL, **STEPS)
        assert not any(chunk.requires_grad for chunk in result.video)
        assert torch.is_grad_enabled()

    def test_threads_that_share_an_object_do_not_disturb_each_other(self, pipeline):
        expected = {seed: everything(pipeline("x", **{**SMALL, "seed": seed}, **STEPS)) for seed in (1, 2)}
        found = {}

        def call(seed):
            found[seed] = everything(pipeline("x", **{**SMALL, "seed": seed}, **STEPS))

        threads = [threading.Thread(target=call, args=(seed,)) for seed in (1, 2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert all(same(found[seed], expected[seed]) for seed in (1, 2))

    def test_a_video_is_decoded_in_the_engines_turn(self, pipeline, monkeypatch):
        """Its decoder may have to be loaded, for which others may have to go."""
        video = pipeline("x", **SMALL, **STEPS).video
        decode, held = pipeline.engine.decode_video, []

        def decode_video(*arguments):
            held.append(pipeline.engine.lock._is_owned())
            return decode(*arguments)

        monkeypatch.setattr(pipeline.engine, "decode_video", decode_video)
        next(video)
        assert held == [True]

    def test_the_global_random_state_is_left_alone(self, pipeline):
        before = torch.random.get_rng_state()
        everything(pipeline("x", **SMALL, **STEPS))
        assert torch.equal(before, torch.random.get_rng_state())

    def test_events_come_in_order_with_previews(self, pipeline):
        events = []
        pipeline("x", callback=lambda event: events.append(event) and None, **SMALL, **STEPS)
        stages = list(dict.fromkeys(event.stage for event in events))
        assert stages == ["encode prompt", "stage 1", "stage 2", "decode audio"]
        steps = [event for event in events if event.stage == "stage 1" and event.video_x0 is not None]
        assert [(event.step, event.of) for event in steps] == [(0, 2), (1, 2)]
        assert steps[0].sigma == pytest.approx(1.0)
        ends = [(event.stage, event.step, event.of) for event in events if event.result is not None]
        assert ends == [("stage 1", 2, 2), ("stage 2", 3, 3)]

    @pytest.mark.parametrize("stage", ["encode prompt", "stage 1", "stage 2", "decode audio", "write"])
    def test_cancelling_anywhere_leaves_no_file_and_a_usable_object(self, pipeline, tmp_path, stage):
        path = tmp_path / "out.mp4"
        with pytest.raises(Cancelled, match=stage):
            pipeline("x", output_path=path, callback=lambda event: event.stage != stage, **SMALL, **STEPS)
        assert not list(tmp_path.iterdir())
        pipeline("x", output_path=path, **SMALL, **STEPS)
        assert path.stat().st_size > 0

    def test_a_callback_cannot_begin_another_call(self, pipeline):
        """It would switch the LoRAs of the one that is under way."""
        expected = everything(pipeline("x", **SMALL, **STEPS))
        other, refused = DistilledPipeline(engine=pipeline.engine), []

        def callback(event):
            with pytest.raises(InputError, match="in the middle of a call"):
                other("y", **SMALL)
            refused.append(event)

        assert same(expected, everything(pipeline("x", callback=callback, **SMALL, **STEPS)))
        assert refused
        other("y", **SMALL)

    def test_an_error_in_the_callback_passes_through(self, pipeline):
        def fail(event):
            raise KeyError(event.stage)

        with pytest.raises(KeyError):
            pipeline("x", callback=fail, **SMALL, **STEPS)
        everything(pipeline("x", **SMALL, **STEPS))

    def test_a_nan_stops_at_its_stage(self, model_folder, tmp_path):
        tensors = load_file(model_folder / "distilled-lora.safetensors")
        name = next(iter(tensors))
        tensors[name] = torch.full_like(tensors[name], float("nan"))
        lora = tmp_path / "broken.safetensors"
        save_file(tensors, lora)
        pipeline = TI2VidTwoStagesPipeline(**{**files(model_folder), "distilled_lora": [str(lora)]})
        with pytest.raises(LTXError, match=r"not finite .* stage 2 \(torch.float32 on cpu\)"):
            pipeline("x", output_path=tmp_path / "out.mp4", **SMALL, **STEPS)
        assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("quantization", [None, QuantizationPolicy.fp8_cast()], ids=["plain", "fp8-cast"])
def test_a_pickled_pipeline_opens_its_files_anew(model_folder, quantization):
    pipeline = TI2VidTwoStagesPipeline(**files(model_folder), quantization=quantization)
    expected = everything(pipeline("x", **SMALL, **STEPS))
    pipeline.engine.ledger.check("vocoder")  # what is prepared stays, too
    again = pickle.loads(pickle.dumps(pipeline))
    assert not again.engine.components.loaded
    assert same(expected, everything(again("x", **SMALL, **STEPS)))


def test_the_built_in_model_can_be_pickled_too_and_computes_as_before():
    how = {"offload": "disk", "attention": "pytorch", "compile": {"mode": "default"}, "max_batch_size": 2}
    how |= {"fuse_loras": False}
    again = pickle.loads(pickle.dumps(DistilledPipeline(**how)))
    assert again.loras == DistilledPipeline().loras
    engine = again.engine
    found = (engine.components.offload, engine.attention, engine.compile, engine.max_batch_size)
    assert (*found, engine.components.fuse_loras) == tuple(how.values())


class TestLoras:
    def test_strength_0_is_no_lora_and_sets_are_restored(self, pipeline, model_folder):
        lora = str(model_folder / "distilled-lora.safetensors")
        engine = pipeline.engine
        plain, zero, two = (
            TI2VidOneStagePipeline(engine=engine, loras=loras) for loras in ((), [(lora, 0.0)], [(lora, 5.0)])
        )
        first, off, on, again = (everything(p("x", **SMALL, **STEPS)) for p in (plain, zero, two, plain))
        assert same(first, off)
        assert same(first, again)
        assert not same(first, on)

    def test_a_second_stage_without_the_distilled_one_is_told(self, model_folder, caplog):
        given = files(model_folder)
        TI2VidTwoStagesPipeline(**given)
        assert not caplog.records
        TI2VidTwoStagesPipeline(**{name: value for name, value in given.items() if name != "distilled_lora"})
        assert "No distilled LoRA was given" in caplog.text

    def test_one_that_was_trained_further_is_used_as_it_is_now(self, pipeline, model_folder, tmp_path):
        path = tmp_path / "trained.safetensors"
        tensors, found = load_file(model_folder / "distilled-lora.safetensors"), []
        trained = TI2VidOneStagePipeline(engine=pipeline.engine, loras=[(path, 5.0)])
        for number, sign in enumerate((1, -1, 1)):
            save_file({n: sign * t if "lora_B" in n else t for n, t in tensors.items()}, path)
            os.utime(path, ns=(number, number))
            found.append(everything(trained("x", **SMALL, **STEPS)))
        assert not same(found[0], found[1])
        assert same(found[0], found[2])

    def test_one_that_fits_nothing_stops_before_any_work(self, pipeline, tmp_path):
        path = tmp_path / "other.safetensors"
        halves = {"lora_A": torch.zeros(4, 8), "lora_B": torch.zeros(8, 4)}
        save_file({f"diffusion_model.else.{name}.weight": half for name, half in halves.items()}, path)
        events = []
        other = TI2VidOneStagePipeline(engine=pipeline.engine, loras=[str(path)])
        with pytest.raises(CheckpointError, match=r"matches no weight of this model.*It has: else"):
            other("x", callback=events.append, **SMALL, **STEPS)
        assert not events

    def test_one_that_fits_partly_is_reported_once_with_counts(
        self, pipeline, model_folder, tmp_path, caplog
    ):
        tensors = load_file(model_folder / "distilled-lora.safetensors")
        checkpoint = Checkpoint(files(model_folder)["checkpoint_path"])
        key = next(k for k in checkpoint if "embeddings_connector." in k and k.endswith("to_q.weight"))
        connector, (rows, columns) = key.removesuffix(".weight"), checkpoint.info(key).shape
        tensors |= {
            f"{connector.removeprefix('model.')}.lora_A.weight": torch.zeros(2, columns),
            f"{connector.removeprefix('model.')}.lora_B.weight": torch.zeros(rows, 2),
        }
        path = tmp_path / "partly.safetensors"
        save_file(tensors, path)
        other = TI2VidOneStagePipeline(engine=pipeline.engine, loras=[str(path)])
        other("x", **SMALL, **STEPS)
        warnings = [record.getMessage() for record in caplog.records if "partly" in record.getMessage()]
        assert len(warnings) == 1
        assert "20 modules are used; 1 match no weight" in warnings[0]


class TestWrongFiles:
    def test_a_gemma_folder_that_lacks_a_part_is_refused_at_once(self, model_folder, tmp_path):
        empty = str(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"'model\*\.safetensors' under"):
            TI2VidTwoStagesPipeline(**files(model_folder) | {"gemma_root": empty})
        with pytest.raises(FileNotFoundError, match=r"'model\*\.safetensors' under"):
            ModelLedger(torch.float32, "cpu", gemma_root_path=empty)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"checkpoint_path": "none.safetensors"}, "none.safetensors does not exist"),
            ({"gemma_root": "none"}, "none does not exist"),
            ({"spatial_upsampler_path": "none.safetensors"}, "none.safetensors does not exist"),
            ({"spatial_upsampler_path": None}, "No spatial upsampler was given"),
            ({"distilled_lora": ["none.safetensors"]}, "none.safetensors does not exist"),
            (
                {"checkpoint_path": "upsampler.safetensors"},
                "holds no video encoder .it is a latent upsampler",
            ),
            ({"checkpoint_path": "distilled-lora.safetensors"}, "holds no video encoder .it is a LoRA"),
            ({"checkpoint_path": "gemma"}, "is a folder; give the .safetensors file in it"),
            ({"spatial_upsampler_path": "model.safetensors"}, "it holds another kind of model"),
            ({"distilled_lora": ["model.safetensors"]}, "is a LoRA for another one, or no LoRA"),
        ],
    )
    def test_they_are_named_before_any_work(self, model_folder, change, sentence, monkeypatch):
        monkeypatch.chdir(model_folder)
        events = []
        with pytest.raises((LTXError, FileNotFoundError), match=sentence):
            TI2VidTwoStagesPipeline(**{**files(model_folder), **change})(
                "x", callback=events.append, **SMALL, **STEPS
            )
        assert not events

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"rational_resampler": True, "spatial_scale": 1.5}, r"frames by 1 and sides by 1\.5"),
            ({"temporal_upsample": True, "spatial_upsample": False}, "frames by 2 and sides by 1"),
            ({"temporal_upsample": True}, "frames by 2 and sides by 2"),
        ],
    )
    def test_upsamplers_that_are_for_no_second_stage(self, model_folder, tmp_path, changes, sentence):
        path = tmp_path / "upsampler.safetensors"
        config = Checkpoint(model_folder / "upsampler.safetensors").config | changes
        upsampler = LatentUpsamplerConfigurator.from_config(config)
        save_checkpoint(path, {"upsampler": upsampler}, config, "2.3.0")
        pipeline = TI2VidTwoStagesPipeline(**files(model_folder) | {"spatial_upsampler_path": path})
        events = []
        with pytest.raises(CheckpointError, match=f"{sentence}; a second stage needs"):
            pipeline("x", callback=events.append, **SMALL, **STEPS)
        assert not events

    @pytest.mark.parametrize("damage", ["empty", "truncated", "foreign", "misshapen", "lacking"])
    def test_damaged_files(self, model_folder, tmp_path, damage):
        source, path = model_folder / "model.safetensors", tmp_path / "model.safetensors"
        content = source.read_bytes()
        if damage in ("misshapen", "lacking"):
            checkpoint = Checkpoint(source)
            tensors = load_file(source)
            key = next(key for key in tensors if "transformer_blocks.0.attn1.to_q.weight" in key)
            kept = tensors.pop(key)
            if damage == "misshapen":
                tensors[key] = kept[:-1]
            save_file(tensors, path, metadata=dict(checkpoint.metadata))
        else:
            path.write_bytes(
                {"empty": b"", "truncated": content[: len(content) // 2], "foreign": b"hello" * 99}[damage]
            )
        sentence = {
            "empty": "is empty",
            "truncated": "is truncated",
            "foreign": "is not a safetensors file",
            "misshapen": "has shape .* the configuration asks for",
            "lacking": "lacks 1 of the",
        }[damage]
        with pytest.raises(CheckpointError, match=sentence):
            TI2VidOneStagePipeline(path, model_folder / "gemma")("x", **SMALL, **STEPS)

    def test_mixing_whole_and_split_files(self):
        with pytest.raises(InputError, match=r"--checkpoint-path .* and --transformer-path .* exclude"):
            ModelPaths.from_arguments(checkpoint_path="a", transformer_path="b")

    def test_the_kind_of_checkpoint_is_told_by_name(self, model_folder, tmp_path, caplog):
        path = tmp_path / "ltx-2.3-22b-distilled.safetensors"
        path.symlink_to(model_folder / "model.safetensors")
        TI2VidOneStagePipeline(path, model_folder / "gemma")("x", dry_run=True, **SMALL)
        assert not caplog.records
        TI2VidOneStagePipeline(path, model_folder / "gemma")("x", **SMALL, **STEPS)
        assert "a distilled one, not full: the distilled pipeline suits it" in caplog.text
        caplog.clear()
        DistilledPipeline(path, model_folder / "gemma", model_folder / "upsampler.safetensors")("x", **SMALL)
        assert "suits it" not in caplog.text


@pytest.mark.parametrize("loaded", [False, True])
def test_a_side_that_the_decoder_cannot_reflect_is_refused_before_any_work(
    model_folder, tmp_path, monkeypatch, loaded
):
    source, path = model_folder / "model.safetensors", tmp_path / "model.safetensors"
    metadata = Checkpoint(source).metadata
    config = json.loads(metadata["config"])
    config["vae"]["spatial_padding_mode"] = "reflect"
    save_file(load_file(source), path, metadata={**metadata, "config": json.dumps(config)})
    pipeline = TI2VidOneStagePipeline(path, model_folder / "gemma")
    if loaded:
        pipeline.engine.components.load("video_decoder")
    monkeypatch.setattr(Engine, "encode_prompts", None)
    with pytest.raises(
        LTXError, match="a side of 1 latent does not allow; use sides, and tiles, of 64 pixels"
    ):
        pipeline("x", height=32, width=64, num_frames=9)


def test_the_engine_says_that_it_uses_the_built_in_model(caplog):
    with caplog.at_level("INFO"):
        Engine.open(ModelPaths())
    assert "using the built-in miniature" in caplog.text


class TestKeywords:
    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            ({"checkpoint_pth": "x"}, "unexpected keyword argument 'checkpoint_pth'"),
            ({"ofload": "cpu"}, "did you mean 'offload'"),
        ],
    )
    def test_of_the_constructor(self, wrong, sentence):
        with pytest.raises(TypeError, match=sentence):
            DistilledPipeline(**wrong)

    def test_of_the_call(self, pipeline):
        with pytest.raises(TypeError, match="'num_frame'"):
            pipeline("x", num_frame=9)

    def test_an_engine_brings_its_own_device(self, pipeline):
        with pytest.raises(InputError, match="the engine's; leave them out"):
            DistilledPipeline(engine=pipeline.engine, dtype=torch.bfloat16)

    def test_an_image_without_its_frame(self, pipeline):
        with pytest.raises(InputError, match=r"An image is .path, frame_idx, strength."):
            pipeline("x", images=["picture.png"])

    def test_blocks_that_the_model_has_not(self, pipeline, caplog):
        from ltx_core.components.guiders import MultiModalGuiderParams

        strange = MultiModalGuiderParams(stg_scale=1.0, stg_blocks=[28])
        pipeline("x", video_guider_params=strange, **SMALL, **STEPS)
        assert "STG asks for block 28; the transformer has blocks 0 to 1" in caplog.text
