"""The latent cache and the transformer's training: every task is learnt, nothing is lost, all is checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="training needs Accelerate")

from tests.ltx_pipelines.media.making_media import clip_with_late_sound
from tests.ltx_trainer.test_training import run, same
from tests.ltx_trainer.tiny import table

from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    LTXError,
    MissingFileError,
    MissingMediaError,
)
from ltx_core.guidance.perturbations import PerturbationType
from ltx_core.loader import Checkpoint, SingleGPUModelBuilder, build_model, write_tensors
from ltx_core.loader.gemma import load_text_encoder
from ltx_core.model.transformer import LTXModelConfigurator
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from ltx_core.sd_ops import EMBEDDINGS_PROCESSOR_KEY_OPS, LTXV_MODEL_COMFY_RENAMING_MAP
from ltx_core.text_encoders.gemma import EmbeddingsProcessorConfigurator
from ltx_core.types import Audio
from ltx_pipelines.media.images import resize_and_center_crop
from ltx_pipelines.miniature.gemma import write_tiny_gemma
from ltx_pipelines.miniature.random_model import randomize
from ltx_pipelines.utils.constants import DEFAULTS_KEY
from ltx_pipelines.utils.media_io import encode_video
from ltx_trainer import sources
from ltx_trainer.__main__ import main
from ltx_trainer.assemble import assemble
from ltx_trainer.cache import CacheConfig, LatentCache
from ltx_trainer.config import parse_table
from ltx_trainer.data import batches
from ltx_trainer.distill import DistillRun, DistillTask
from ltx_trainer.encode import make_cache
from ltx_trainer.flow import Levels, NoiseConfig, TasksConfig, draw
from ltx_trainer.folder import own_folder
from ltx_trainer.log import Log
from ltx_trainer.loop import train
from ltx_trainer.lora import LoRAConfig, add_lora
from ltx_trainer.sources import WorldSource, open_source
from ltx_trainer.text import make_contexts
from ltx_trainer.transformer import TransformerRun, TransformerTask
from ltx_trainer.upsampler import UpsamplerRun, UpsamplerTask
from ltx_trainer.world import World, WorldConfig

NOTHING = TasksConfig(caption=0, image=0, keyframes=0, audio=0, region=0, isolated=0)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small autoencoders, a Gemma and a cache."""
    room = tmp_path_factory.mktemp("room")
    vae = table("video-vae")["network"]["vae"] | {"latent_channels": 128, "decoder_base_channels": 16}
    run("video-vae", room / "v", steps=1, network={"vae": vae})
    audio = json.loads(json.dumps(table("audio-vae")["network"]))
    audio["audio_vae"]["model"]["params"]["ddconfig"]["z_channels"] = 8
    run("audio-vae", room / "a", steps=1, network=audio)
    write_tiny_gemma(room / "gemma", hidden=16, layers=2, heads=2, pieces=100)
    make_cache(cache_config(room), room / "cache")
    return room


def cache_config(room: Path, **changes: Any) -> CacheConfig:
    values: dict[str, Any] = {
        "video_vae": str(room / "v" / "video_vae.safetensors"),
        "audio_vae": str(room / "a" / "audio_vae.safetensors"),
        "clips": 7,
        "shard": 4,
        "batch_size": 3,
        "height": 64,
        "width": 64,
        "frames": 9,
        "references": True,
    }
    return CacheConfig(**values | changes)


def make_task(room: Path, **changes: Any) -> TransformerTask:
    model = json.loads(files("ltx_pipelines.miniature").joinpath("random_model.json").read_text())["model"]
    values: dict[str, Any] = {
        "network": {"transformer": model["transformer"] | {"num_layers": 1}},
        "precision": "fp32",
        "stages": [{"steps": 4, "batch_size": 4, "caches": [str(room / "cache")]}],
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1},
        "saving": {"every": 2, "log_every": 1, "evaluate_every": 1000},
        "gemma": str(room / "gemma"),
        "text_length": 128,
        "evaluation": str(room / "cache"),
        "evaluation_clips": 4,
    }
    return TransformerTask(parse_table(TransformerRun, values | changes))


def test_a_cache_holds_what_the_encoders_see(room: Path) -> None:
    cache = LatentCache(room / "cache")
    assert len(cache) == 7
    batch = cache.clips(range(7))
    assert batch["video"].shape == (7, 128, 2, 2, 2)
    assert batch["audio"].shape == (7, 8, 9, 16)
    assert batch["keyframes"].shape == (7, 2, 128, 2, 2)
    assert batch["reference"].shape == batch["video"].shape
    assert cache.keyframes == (0, 8)
    assert len(set(batch["captions"])) == 7
    # The encoder is causal: its first latent frame is that of the first picture alone.
    assert (batch["keyframes"][:, 0] - batch["video"][:, :, 0]).abs().max() < 0.05
    again = cache.clips(range(7, 14))
    assert sorted(again["captions"]) == sorted(batch["captions"])
    assert again["captions"] != batch["captions"]


def test_captions_take_turns(room: Path, tmp_path: Path) -> None:
    make_cache(cache_config(room, captions=3, clips=2), tmp_path / "many")
    cache = LatentCache(tmp_path / "many")
    said = [sorted(cache.clips(range(2 * turn, 2 * turn + 2))["captions"]) for turn in range(4)]
    assert said[0] == said[3]
    assert len({tuple(turn) for turn in said}) == 3
    single = LatentCache(room / "cache").clips(range(7))["captions"]
    assert set(said[0]) <= set(single)


def test_a_cache_of_the_world_can_have_some_motions_more_often(room: Path) -> None:
    config = cache_config(room, motions=("spin", "spin", "orbit"))
    source = open_source(config, 16_000, torch.device("cpu"))
    assert isinstance(source, WorldSource)
    found = [source.world.truth(number).scene.motion for number in range(60)]
    assert set(found) == {"spin", "orbit"}
    assert found.count("spin") > found.count("orbit")


def test_an_interrupted_cache_goes_on(room: Path, tmp_path: Path) -> None:
    config = cache_config(room)
    make_cache(config, tmp_path)
    first, second = (config.path(tmp_path, shard) for shard in range(2))
    second.unlink()
    with pytest.raises(CheckpointError, match="half made, 1 of 2 files"):
        LatentCache(tmp_path)
    before = first.stat().st_mtime_ns
    make_cache(config, tmp_path)
    assert first.stat().st_mtime_ns == before
    whole = LatentCache(room / "cache").clips(range(7))
    assert torch.equal(LatentCache(tmp_path).clips(range(7))["video"], whole["video"])


def test_settings_can_be_changed_while_nothing_is_encoded(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise InputError("The clip is too short.")

    with monkeypatch.context() as patch:
        patch.setattr(WorldSource, "read", fails)
        with pytest.raises(InputError, match="too short"):
            make_cache(cache_config(room, clips=1, frames=17), tmp_path)
    make_cache(cache_config(room, clips=1), tmp_path)
    assert LatentCache(tmp_path).config.frames == 9


def test_the_worlds_originals_have_another_colour_or_motion_from_where_the_clip_begins(room: Path) -> None:
    source = open_source(cache_config(room, originals=True), 16_000, torch.device("cpu"))
    assert isinstance(source, WorldSource)
    for number in range(40):
        (clip, original), drawn = source._pair(number), source.world.truth(number)
        assert drawn.scene in (clip.scene, original.scene)
        assert not clip.scene.unseen
        assert not original.scene.unseen
        names = ("shape", "colour", "size", "background", "motion")
        differ = [name for name in names if getattr(clip.scene, name) != getattr(original.scene, name)]
        assert differ == [("colour", "motion")[number % 2]]
        assert np.abs(clip.position[0] - original.position[0]).max() < 0.15
    clips = source.read([0, 1])
    assert clips.originals is not None
    frames, sounds = clips.originals
    assert frames.shape == clips.frames.shape
    assert not torch.equal(frames, clips.frames)
    assert torch.equal(sounds[0], clips.sounds[0])
    assert not torch.equal(sounds[1], clips.sounds[1])


def write_videos(folder: Path) -> None:
    """Three videos, and beside them the next ones as references and originals."""
    world = World(WorldConfig(height=64, width=96, frames=25, sample_rate=24_000))
    for number in range(3):
        clip = world.clip(number)
        for place, shown in ((".", number), ("references", number), ("originals", number + 1)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            seen = world.clip(shown)
            encode_video(seen.video, 24, Audio(seen.audio, 24_000), str(folder / place / f"{number}.mp4"), 1)
        (folder / f"{number}.txt").write_text(clip.caption + "\n")


def test_a_folder_of_videos_can_be_encoded(room: Path, tmp_path: Path) -> None:
    write_videos(tmp_path / "videos")
    config = cache_config(room, folder=str(tmp_path / "videos"), clips=0, frames=17, originals=True)
    source = open_source(config, 16_000, torch.device("cpu"))
    clips = source.read([1, 2])
    world = World(WorldConfig(height=64, width=96, frames=25))
    expected = world.batch([1, 2])
    assert clips.captions == [[caption] for caption in expected.captions]
    assert clips.frames.shape == clips.references.shape == (2, 17, 64, 64, 3)
    assert (clips.frames.float() - expected.video[:, :17, :, 16:80].float()).abs().mean() < 4
    assert clips.sounds.shape == (2, 2, round(17 / 24 * 16_000))
    heard = expected.audio[..., : clips.sounds.shape[-1]]
    assert (clips.sounds - heard).square().mean() < 0.2 * heard.square().mean()
    assert clips.originals is not None
    assert torch.equal(clips.originals[0][0], clips.frames[1])  # the next video
    assert torch.equal(clips.originals[1][0], clips.sounds[1])
    make_cache(config, tmp_path / "cache")
    cache = LatentCache(tmp_path / "cache")
    assert len(cache) == 3
    batch = cache.clips(range(3))
    shape = batch["video"].shape
    assert batch["reference"].shape == batch["original_video"].shape == shape == (3, 128, 3, 2, 2)
    assert batch["original_audio"].shape == batch["audio"].shape


def test_sound_from_before_the_picture_is_left_out(room: Path, tmp_path: Path) -> None:
    clip_with_late_sound(tmp_path / "early.mkv", -0.1)
    (tmp_path / "early.txt").write_text("a tone")
    config = cache_config(room, folder=str(tmp_path), clips=0, references=False)
    (sound,) = open_source(config, 16_000, torch.device("cpu")).read([0]).sounds
    assert (sound == 0.5).sum(dim=1).tolist() == pytest.approx([0.15 * 16_000] * 2, abs=16)


def test_folders_that_cannot_be_encoded_are_told(room: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    with pytest.raises(MissingFileError, match="holds no videos"):
        make_cache(cache_config(room, folder=str(folder)), tmp_path / "c")
    write_videos(folder)
    for changes, said in (
        ({"clips": 4}, "clips is 4, but .* has 3"),
        ({"clips": 0, "frames": 33}, "has 25 frames at 24 a second, but 33 are needed"),
    ):
        with pytest.raises(LTXError, match=said):
            make_cache(cache_config(room, folder=str(folder), **changes), tmp_path / "c")
    assert not (tmp_path / "c").exists()  # told before anything is encoded
    make_cache(cache_config(room, folder=str(folder), clips=0), tmp_path / "whole")
    (folder / "0.txt").write_text("another caption")
    with pytest.raises(InputError, match="other clips or encoders: its source is"):
        make_cache(cache_config(room, folder=str(folder), clips=0), tmp_path / "whole")
    (folder / "0.txt").write_bytes("\ufeffa caption".encode("utf-16"))
    with pytest.raises(InputError, match=r"0.txt is no UTF-8 text"):
        make_cache(cache_config(room, folder=str(folder), clips=0), tmp_path / "c")
    (folder / "0.txt").write_text(" \n")
    with pytest.raises(MissingFileError, match=r"1 of 3 videos .* have no caption \(0.mp4"):
        make_cache(cache_config(room, folder=str(folder), clips=0), tmp_path / "c")
    (folder / "0.txt").write_text("a caption", encoding="utf-8-sig")  # as Notepad does
    source = open_source(cache_config(room, folder=str(folder), clips=0), 16_000, torch.device("cpu"))
    assert source.read([0]).captions == [["a caption"]]
    (folder / "references" / "1.mp4").unlink()
    with pytest.raises(MissingFileError, match=r"references/1.mp4 is missing"):
        make_cache(cache_config(room, folder=str(folder), clips=0), tmp_path / "c")
    (folder / "originals" / "1.mp4").unlink()
    bare = cache_config(room, folder=str(folder), clips=0, references=False, originals=True)
    with pytest.raises(MissingFileError, match=r"originals/1.mp4 is missing; originals = true asks for it"):
        make_cache(bare, tmp_path / "c")
    (folder / "2.mp4").unlink()
    (folder / "2.mp4").symlink_to("gone.mp4")
    with pytest.raises(MissingMediaError, match=r"2.mp4 does not exist"):
        make_cache(cache_config(room, folder=str(folder), clips=0, references=False), tmp_path / "c")
    (folder / "2.txt").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 3 videos .* have no caption \(2.mp4"):
        make_cache(cache_config(room, folder=str(folder), clips=0), tmp_path / "c")


def test_large_videos_are_made_small_frame_by_frame(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_videos(tmp_path)
    shapes = []

    def fit(frames: torch.Tensor, *size: int) -> torch.Tensor:
        shapes.append(tuple(frames.shape))
        return resize_and_center_crop(frames, *size)

    monkeypatch.setattr(sources, "resize_and_center_crop", fit)
    open_source(cache_config(room, folder=str(tmp_path), clips=0), 16_000, torch.device("cpu")).read([0])
    assert set(shapes) == {(1, 64, 96, 3)}


def test_a_cache_that_is_made_anew_is_read_anew(room: Path, tmp_path: Path) -> None:
    for seed in (0, 5):
        make_cache(cache_config(room, clips=2, seed=seed), tmp_path / "c")
        read = LatentCache(tmp_path / "c").clips([0, 1])["captions"]
        truths = WorldSource(cache_config(room, clips=2, seed=seed), 16_000, torch.device("cpu")).read([0, 1])
        assert sorted(read) == sorted(caption for (caption,) in truths.captions)
        shutil.rmtree(tmp_path / "c")


def test_caches_that_do_not_fit_are_refused(room: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="holds no latents"):
        LatentCache(tmp_path)
    with pytest.raises(InputError, match=r"other clips or encoders: its config.frames is 9, here it is 17"):
        make_cache(cache_config(room, frames=17), room / "cache")
    with pytest.raises(ConfigError, match="clips is 0"):
        cache_config(room, clips=0)
    with pytest.raises(ConfigError, match="seed is -1; it must not be negative"):
        cache_config(room, seed=-1)
    with pytest.raises(ConfigError, match="keyframes are"):
        cache_config(room, keyframes=(9,))
    make_cache(cache_config(room, clips=2), tmp_path / "small")
    path = cache_config(room).path(tmp_path / "small", 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"latents-00000.safetensors is damaged"):
        LatentCache(tmp_path / "small").clips([0])
    swapped = cache_config(room, video_vae=str(room / "a" / "audio_vae.safetensors"))
    with pytest.raises(ConfigError, match=r"video_vae: .* has no 'vae'"):
        make_cache(swapped, tmp_path / "other")
    with own_folder(tmp_path / "small"), pytest.raises(InputError, match="Another process"):
        make_cache(cache_config(room, clips=2), tmp_path / "small")


def drawn(room: Path, folder: str = "cache", **chances: float) -> Any:
    cache = LatentCache(room / folder)
    tasks = TasksConfig(**dict.fromkeys(vars(NOTHING), 0.0) | chances)
    generator = torch.Generator().manual_seed(1)
    return draw(cache.clips(range(7)), cache.keyframes, 24.0, tasks, NoiseConfig(), generator)


def test_noise_is_mixed_in_by_each_tokens_level(room: Path) -> None:
    example = drawn(room)
    video = example.modality("video", torch.zeros(7, 1, 4))
    assert torch.equal(video.timesteps[:, 0, 0], video.sigma)
    assert video.sigma.min() > 0
    assert len(video.sigma.unique()) == 7
    clean, noise = example.states["video"].clean_latent, example.noise["video"]
    assert example.loss("video", noise - clean) == 0
    assert (video.latent - video.timesteps * (noise - clean) - clean).abs().max() < 1e-5
    assert torch.equal(example.sigma["audio"], video.sigma)


def test_a_given_image_is_the_first_latent_frame_and_costs_nothing(room: Path) -> None:
    example = drawn(room, image=1.0)
    video = example.modality("video", torch.zeros(7, 1, 4))
    assert torch.equal(video.timesteps[:, :4], torch.zeros(7, 4, 1))
    assert torch.equal(video.latent[:, :4], example.states["video"].clean_latent[:, :4])
    assert (video.timesteps[:, 4:] > 0).all()
    velocity = example.noise["video"] - example.states["video"].clean_latent
    velocity[:, :4] = 99
    assert example.loss("video", velocity) == 0


def test_given_sound_is_clean_and_its_level_is_zero(room: Path) -> None:
    example = drawn(room, audio=1.0)
    audio = example.modality("audio", torch.zeros(7, 1, 4))
    assert torch.equal(audio.latent, example.states["audio"].clean_latent)
    assert not audio.sigma.any()
    assert example.loss("audio", torch.randn_like(audio.latent)) == 0
    assert example.sigma["video"].min() > 0
    assert not drawn(room, video=1.0).sigma["video"].any()


def test_keyframes_and_references_are_appended_clean(room: Path) -> None:
    example = drawn(room, keyframes=1.0, reference=1.0)
    video = example.modality("video", torch.zeros(7, 1, 4))
    extra = video.latent.shape[1] - 8
    assert extra in (4 + 8, 8 + 8)
    assert not video.timesteps[:, 8:].any()
    assert torch.equal(video.latent[:, -8:], example.states["video"].clean_latent[:, -8:])
    assert video.positions.shape[2] == 8 + extra


def test_regions_keep_what_lies_outside_in_both_streams(room: Path) -> None:
    example = drawn(room, region=1.0)
    mask = example.states["audio"].denoise_mask[..., 0]
    assert 0 < mask.mean() < 1
    for row in mask:  # one stretch of time
        assert row.diff().abs().sum() <= 2
        assert row.sum() > 0
    assert mask[:, -1].any()  # some reach the end
    assert not torch.equal(example.states["video"].denoise_mask, torch.ones(7, 8, 1))


def test_cuts_give_the_surroundings_of_another_clip(room: Path) -> None:
    whole, cut = drawn(room, region=1.0), drawn(room, region=1.0, cut=1.0)
    for name, state in cut.states.items():
        clean, kept = whole.states[name].clean_latent, state.denoise_mask == 0
        assert torch.equal(state.denoise_mask, whole.states[name].denoise_mask)
        assert torch.equal(state.clean_latent, torch.where(kept, clean.roll(1, dims=0), clean))
        assert not torch.equal(state.clean_latent, clean)


def test_cuts_of_a_cache_with_originals_are_set_in_these(room: Path) -> None:
    make_cache(cache_config(room, originals=True), room / "pairs")
    originals = LatentCache(room / "pairs").clips(range(7))
    whole, cut = (drawn(room, "pairs", region=1.0, cut=cut) for cut in (0.0, 1.0))
    patchifiers = {"video": VideoLatentPatchifier(1), "audio": AudioPatchifier(1)}
    for name, state in cut.states.items():
        clean, kept = whole.states[name].clean_latent, state.denoise_mask == 0
        original = patchifiers[name].patchify(originals[f"original_{name}"].float())
        assert kept.any()
        assert torch.equal(state.clean_latent, torch.where(kept, original, clean))


def test_isolated_samples_skip_both_exchanges(room: Path) -> None:
    config = drawn(room, isolated=1.0).perturbations
    assert config.all_in_batch(PerturbationType.SKIP_A2V_CROSS_ATTN, 0)
    assert config.all_in_batch(PerturbationType.SKIP_V2A_CROSS_ATTN, 5)
    assert not drawn(room).perturbations.any_in_batch(PerturbationType.SKIP_A2V_CROSS_ATTN, 0)


def test_noise_levels_lie_where_they_should() -> None:
    generator = torch.Generator().manual_seed(0)
    bent = NoiseConfig(mean=1.0, uniform=0.0).draw(4000, generator)
    assert 0 < bent.min() < bent.max() < 1
    assert 0.68 < bent.median() < 0.78
    flat = NoiseConfig(levels=Levels.UNIFORM).draw(4000, generator)
    assert 0.47 < flat.median() < 0.53


@pytest.mark.parametrize("chances", [{"image": 1.5}, {"audio": -0.1}, {"audio": 0.6, "video": 0.6}])
def test_chances_are_chances(chances: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="tasks"):
        TasksConfig(**chances)


@pytest.mark.parametrize("train_gemma", [False, True])
def test_training_lowers_the_loss_and_writes_official_files(
    room: Path, tmp_path: Path, train_gemma: bool
) -> None:
    stages = [{"steps": 25, "batch_size": 4, "caches": [str(room / "cache")]}]
    task = make_task(room, stages=stages, train_gemma=train_gemma, gradient_checkpointing=True)
    path = train(task, tmp_path)
    lines = Log(tmp_path / "log.jsonl").read()
    assert sum(line["loss"] for line in lines[-5:]) < 0.9 * sum(line["loss"] for line in lines[:5])
    assert {"video_test", "audio_test"} <= set(lines[-1])
    checkpoint = Checkpoint(path)
    model = build_model(LTXModelConfigurator, checkpoint, LTXV_MODEL_COMFY_RENAMING_MAP, "cpu", torch.float32)
    processor = build_model(
        EmbeddingsProcessorConfigurator, checkpoint, EMBEDDINGS_PROCESSOR_KEY_OPS, "cpu", torch.float32
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, task.model.transformer.state_dict()[name].bfloat16().float())
    gemma = load_text_encoder(tmp_path / "gemma" if train_gemma else room / "gemma", dtype=torch.float32)
    states, mask, length = gemma.encode_valid("A red ball bounces.")
    ids, batch_mask = task.model.text.tokens(["A red ball bounces."])
    with torch.no_grad():
        ours = task.model.text(ids, batch_mask)
    valid = mask[0].bool()
    assert batch_mask.all()
    assert (ours[-1][0] - states[-1][0, valid]).abs().max() < 0.1
    assert processor.process_valid(states, mask, length).video_encoding.shape == (1, 1024, 64)
    old = load_text_encoder(room / "gemma").model.model.language_model.embed_tokens.weight
    assert torch.equal(old, gemma.model.model.language_model.embed_tokens.weight.bfloat16()) != train_gemma


def test_a_run_goes_on_exactly_where_it_was_stopped(room: Path, tmp_path: Path) -> None:
    whole = train(make_task(room), tmp_path / "whole")
    task = make_task(room)
    real, seen = task.losses, []

    def losses(*arguments: Any) -> Any:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    task.losses = losses  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path / "parts")
    assert same(train(make_task(room), tmp_path / "parts"), whole)


def test_training_can_start_from_a_file(room: Path, tmp_path: Path) -> None:
    begun = train(make_task(room, model_version="2.0"), tmp_path / "a")
    first = assemble([begun], tmp_path / "first.safetensors", {DEFAULTS_KEY: '{"num_frames": 9}'})
    stages = [{"steps": 1, "batch_size": 2, "caches": [str(room / "cache")]}]
    settings = {"gemma": str(room / "gemma"), "text_length": 128, "precision": "fp32", "stages": stages}
    task = TransformerTask(parse_table(TransformerRun, settings | {"start": str(first)}))
    trained = Checkpoint(first).read("model.diffusion_model.patchify_proj.weight")
    assert torch.equal(task.model.transformer.patchify_proj.weight.bfloat16(), trained)
    second = train(task, tmp_path / "b")
    assert Checkpoint(second).metadata == Checkpoint(first).metadata  # also its version and defaults of calls


def test_caches_of_other_encoders_do_not_mix(room: Path, tmp_path: Path) -> None:
    make_cache(cache_config(room, clips=2), tmp_path / "c")
    index = tmp_path / "c" / "cache.json"
    index.write_text(index.read_text().replace('"video": "', '"video": "x'))
    stages = [{"steps": 1, "caches": [str(room / "cache"), str(tmp_path / "c")]}]
    with pytest.raises(ConfigError, match="made with different encoders"):
        make_task(room, stages=stages)


def test_parts_are_put_together(room: Path, tmp_path: Path) -> None:
    parts = [room / "v" / "video_vae.safetensors", room / "a" / "audio_vae.safetensors"]
    parts.append(run("vocoder", tmp_path / "w", steps=1))  # describes another audio VAE, but holds none
    whole = Checkpoint(assemble(parts, tmp_path / "x" / "model.safetensors"))
    assert set(whole) == {key for part in parts for key in Checkpoint(part)}
    assert set(whole.config) == {"vae", "audio_vae", "vocoder"}
    assert whole.config["audio_vae"] == Checkpoint(parts[1]).config["audio_vae"]
    assert whole.model_version == "2.3.0"
    begun = assemble(parts[:1], tmp_path / "begun", {DEFAULTS_KEY: "{}"})
    assert Checkpoint(assemble([begun, *parts], tmp_path / "again")).metadata[DEFAULTS_KEY] == "{}"
    lora = write_tensors(tmp_path / "lora", {"diffusion_model.x.lora_A.weight": torch.ones(1, 2)})
    with pytest.raises(InputError, match=r"lora is no part of a model \(LoRA\)"):
        assemble([*parts, lora], tmp_path / "y")
    with pytest.raises(InputError, match="nothing to put together"):
        assemble([], tmp_path / "y")
    with pytest.raises(InputError, match="x is a folder; give the name of a file"):
        assemble(parts, tmp_path / "x")


def test_blocks_in_8_bits_are_read_as_nearly_the_same(model_folder: Path, tmp_path: Path) -> None:
    whole = model_folder / "model.safetensors"
    small = assemble([whole], tmp_path / "small.safetensors", fp8=True)
    assert small.stat().st_size < whole.stat().st_size
    made = (LTXModelConfigurator, LTXV_MODEL_COMFY_RENAMING_MAP, "cpu", torch.float32)
    before, after = (
        build_model(made[0], Checkpoint(path), *made[1:]).state_dict() for path in (whole, small)
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("transformer_blocks." in name and name.endswith(".weight") for name in changed)
    for name in changed:
        assert (before[name] - after[name]).norm() < 0.05 * before[name].norm()
    again, once = Checkpoint(assemble([small], tmp_path / "again.safetensors", fp8=True)), Checkpoint(small)
    assert all(torch.equal(again.read(key), once.read(key)) for key in again)
    over = Checkpoint(assemble([small, whole], tmp_path / "over.safetensors"))
    assert set(over) == set(Checkpoint(whole))  # no scale is left of weights that were replaced


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_lora_is_what_the_training_added(room: Path, tmp_path: Path, precision: str) -> None:
    base = train(make_task(room), tmp_path / "base")
    settings = {
        "start": str(base),
        "gemma": str(room / "gemma"),
        "text_length": 128,
        "precision": precision,
        "stages": [{"steps": 6, "batch_size": 4, "caches": [str(room / "cache")]}],
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
        "saving": {"every": 3, "log_every": 1},
        "tasks": {"reference": 1.0},
        "lora": {"rank": 2, "alpha": 4},
    }
    task = TransformerTask(parse_table(TransformerRun, settings))
    path = train(task, tmp_path / "lora")
    lora = Checkpoint(path)
    assert lora.metadata["reference_downscale_factor"] == "1"
    assert all(key.startswith("diffusion_model.transformer_blocks.0.") for key in lora)
    assert {key.rsplit(".", 2)[1] for key in lora} == {"lora_A", "lora_B"}

    builder = SingleGPUModelBuilder(LTXModelConfigurator, str(base), LTXV_MODEL_COMFY_RENAMING_MAP)
    fused = builder.lora(str(path)).build(dtype=torch.float32)
    plain = builder.build(dtype=torch.float32)
    example = drawn(room, reference=1.0)
    contexts = [torch.randn(7, 5, width, generator=torch.Generator().manual_seed(0)) for width in (64, 32)]
    learnt = task.model.transformer.float()
    inputs = [example.modality(name, context) for name, context in zip(("video", "audio"), contexts)]
    with torch.no_grad():
        trained, ours, without = (model(*inputs)[0] for model in (learnt, fused, plain))
    added = (trained - without).abs().mean()
    assert added > 0
    assert (ours - trained).abs().mean() < 0.05 * added

    onto = TransformerTask(parse_table(TransformerRun, settings | {"fused": [str(path)]}))
    with torch.no_grad():
        begun = onto.model.transformer.float()(*inputs)[0]
    assert (begun - trained).abs().mean() < 0.05 * added
    with pytest.raises(ConfigError, match="give `start`"):
        make_task(room, fused=[str(path)])

    kept = Checkpoint(tmp_path / "lora" / "checkpoints" / "step-00000006" / "model.safetensors")
    assert kept.keys()
    assert all(".lora_" in key for key in kept)
    again = TransformerTask(parse_table(TransformerRun, settings))
    assert same(train(again, tmp_path / "lora"), path)


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this PyTorch has no gloo, by which two processes on a CPU talk",
)
def test_sharded_runs_end_as_others_do_also_when_they_die_between(room: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tests.ltx_trainer.sharded_runs", str(room), str(tmp_path)]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert 0.45 < json.loads((tmp_path / "share.json").read_text()) < 0.55

    pairs = {("plain", "sharded"): 3, ("plain-lora", "sharded-lora"): 1, ("sharded", "resumed"): 3}
    for (plain, sharded), steps in pairs.items():
        logs = [Log(tmp_path / name / "log.jsonl").read() for name in (plain, sharded)]
        assert len(logs[0]) == len(logs[1]) == steps
        for line, other in zip(*logs):
            assert line.keys() == other.keys()
            for score in {"loss", "video_test", "audio_test"} & line.keys():
                assert line[score] == pytest.approx(other[score], rel=1e-4)
        files = [Checkpoint(tmp_path / name / "transformer.safetensors") for name in (plain, sharded)]
        assert set(files[0]) == set(files[1])
        for key in files[0]:
            first, second = (file.read(key).float() for file in files)
            assert (first - second).norm() <= 1e-3 * first.norm()  # both were rounded to bfloat16
    assert {"video_test", "audio_test"} <= set(Log(tmp_path / "sharded" / "log.jsonl").read()[1])
    learnt = Checkpoint(tmp_path / "sharded" / "transformer.safetensors")
    assert learnt.read("model.diffusion_model.proj_out.weight").any()  # which was 0 at first
    assert same(
        tmp_path / "sharded" / "transformer.safetensors", tmp_path / "resumed" / "transformer.safetensors"
    )

    from torch.distributed.checkpoint import FileSystemReader  # not in every build of PyTorch

    last = FileSystemReader(tmp_path / "sharded-lora" / "checkpoints" / "step-00000001")
    kept = last.read_metadata().state_dict_metadata
    assert any(key.startswith("weights.") for key in kept)
    assert all(".lora_" in key for key in kept if key.startswith("weights."))


@pytest.mark.parametrize("optimizer", ['method = "muon"', "average = 0.9"])
def test_what_sharded_weights_cannot_have_is_refused_before_anything_is_loaded(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(
        f'start = "nowhere"\ngemma = "nowhere"\n[optimizer]\n{optimizer}\n[[stages]]\nsteps = 1\ncaches = ["c"]\n'
    )
    arguments = [
        "transformer",
        "--config",
        str(tmp_path / "run.toml"),
        "--output-path",
        str(tmp_path / "run"),
    ]
    assert main([*arguments, "--set", "shard=true"]) == 2
    assert "Sharded weights are trained by AdamW" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")  # as `accelerate launch` says it
    assert main(arguments) == 2
    assert "Sharded weights are trained by AdamW" in capsys.readouterr().err


def test_a_caption_longer_than_the_context_is_told(room: Path, tmp_path: Path) -> None:
    task = make_task(room, text_length=4)
    with pytest.raises(InputError, match=r"caption has \d+ tokens, but text_length is 4; raise it"):
        train(task, tmp_path)


def test_folders_of_latents_may_be_in_ones_home(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(room))
    assert len(LatentCache("~/cache")) == 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": {"rank": 2}}, "give `start`"),
        ({"lora": {"rank": -1}}, "may be negative"),
        ({"stages": [{"steps": 1, "caches": ["nowhere"]}]}, "nowhere holds no latents"),
        ({"stages": [{"steps": 1, "caches": []}]}, "caches is empty"),
        ({"stages": [{"steps": 1, "caches": ["x"], "height": 64}]}, "height is not a setting"),
        ({"data": {"motions": ["spin"]}}, "motions is not a setting"),
        ({"dropped_captions": []}, "dropped_captions is empty"),
        ({"evaluation_clips": 0}, "evaluation_clips is 0; it must be positive"),
        ({"text_length": 0}, "text_length is 0; it must be positive"),
        ({"noise": {"uniform": 1.5}}, "noise.uniform 1.5"),
    ],
)
def test_runs_that_cannot_be_are_refused(room: Path, changes: dict, said: str) -> None:
    with pytest.raises(LTXError, match=said):
        make_task(room, **changes)


def test_a_cache_without_references_teaches_no_ic_lora(room: Path, tmp_path: Path) -> None:
    make_cache(cache_config(room, references=False), tmp_path / "bare")
    stages = [{"steps": 1, "batch_size": 2, "caches": [str(tmp_path / "bare")]}]
    with pytest.raises(ConfigError, match=r"bare holds none; make it anew with references = true"):
        make_task(room, tasks={"reference": 1.0}, stages=stages)


def test_batches_of_one_can_be_cut_into_originals_only(room: Path, tmp_path: Path) -> None:
    def task(cache: Path) -> TransformerTask:
        stages = [{"steps": 1, "batch_size": 1, "caches": [str(cache)]}]
        return make_task(room, tasks={"cut": 0.5}, stages=stages)

    with pytest.raises(
        ConfigError, match="batches of two or more, or make the cache anew with originals = true"
    ):
        task(room / "cache")
    make_cache(cache_config(room, originals=True, clips=2), tmp_path / "pairs")
    task(tmp_path / "pairs")


def test_targets_that_match_nothing_are_told() -> None:
    with pytest.raises(ConfigError, match="match none of the model's 1 linear layers"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), LoRAConfig(rank=1))


def test_an_upsampler_learns_what_the_large_clip_encodes_to(room: Path, tmp_path: Path) -> None:
    half, full = str(tmp_path / "half"), str(room / "cache")
    make_cache(cache_config(room, height=32, width=32), Path(half))
    settings = {
        "network": {"_class_name": "LatentUpsampler", "in_channels": 128, "mid_channels": 32, "dims": 3,
                    "num_blocks_per_stage": 1, "spatial_upsample": True, "temporal_upsample": False},
        "video_vae": str(room / "v" / "video_vae.safetensors"),
        "caches": [half, full],
        "evaluation": [half, full],
        "precision": "fp32",
        "stages": [{"steps": 12, "batch_size": 7}],
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 1},
        "saving": {"every": 100, "log_every": 1},
        "evaluation_clips": 7,
    }  # fmt: skip
    task = UpsamplerTask(parse_table(UpsamplerRun, settings))
    batch = task.batch(0, range(7), torch.device("cpu"))
    assert batch["small"].shape == (7, 128, 2, 1, 1)
    assert batch["large"].shape == (7, 128, 2, 2, 2)
    path = train(task, tmp_path / "run")
    lines = Log(tmp_path / "run" / "log.jsonl").read()
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert {"mse_nearest"} <= set(lines[-1])
    model = build_model(LatentUpsamplerConfigurator, Checkpoint(path), None, "cpu", torch.float32)
    assert model(torch.zeros(1, 128, 2, 1, 1)).shape == (1, 128, 2, 2, 2)
    with pytest.raises(ConfigError, match="give two"):
        UpsamplerTask(parse_table(UpsamplerRun, settings | {"caches": [half]}))
    with pytest.raises(ConfigError, match="twice the height and width"):
        UpsamplerTask(parse_table(UpsamplerRun, settings | {"caches": [full, half]}))
    audio = str(room / "a" / "audio_vae.safetensors")
    with pytest.raises(ConfigError, match="holds no video VAE"):
        UpsamplerTask(parse_table(UpsamplerRun, settings | {"video_vae": audio}))
    other = str(run("video-vae", tmp_path / "other", steps=1))
    with pytest.raises(ConfigError, match=r"have 16 channels, those of .*half 128"):
        UpsamplerTask(parse_table(UpsamplerRun, settings | {"video_vae": other}))
    index = Path(half) / "cache.json"
    index.write_text(index.read_text().replace('"source": "world"', '"source": "a folder"'))
    with pytest.raises(ConfigError, match="does not hold the clips"):
        UpsamplerTask(parse_table(UpsamplerRun, settings))
    index.write_text(index.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(CheckpointError, match=r"cache.json is of another version"):
        LatentCache(half)


def test_processes_that_train_together_take_turns_together(room: Path, tmp_path: Path) -> None:
    half, full = str(tmp_path / "half"), str(room / "cache")
    make_cache(cache_config(room, height=32, width=32), Path(half))
    task = make_task(room, stages=[{"steps": 4, "batch_size": 2, "caches": [half, full]}])
    seen = [[b["video"] for b in batches(task, 0, rank, 2, torch.device("cpu"))] for rank in (0, 1)]
    for of_rank in seen:
        assert [video.shape[-1] for video in of_rank] == [1, 2, 1, 2]
    assert not seen[0][1].equal(seen[1][1])


def test_one_register_stands_for_all_where_connectors_have_no_blocks(room: Path) -> None:
    network = make_task(room).network["transformer"]
    plain = network | {"connector_num_layers": 0, "audio_connector_num_layers": 0}
    task = make_task(room, network={"transformer": plain}, text_length=1024)
    with torch.no_grad():
        for parameter in task.model.transformer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch, model = task.batch(0, range(4), torch.device("cpu")), task.model
    drawn = draw(batch, (0,), 24.0, TasksConfig(), NoiseConfig(), torch.Generator().manual_seed(0))
    ids, mask = batch["ids"][:4], batch["mask"][:4]
    with torch.no_grad():
        merged = model(ids, mask, drawn)
        contexts, bias = make_contexts(model.processor, model.text(ids, mask), mask, 1024)
        whole = model.processor.process_valid(model.text(ids, mask), mask, 1024)
        video = drawn.modality("video", whole.video_encoding)
        audio = drawn.modality("audio", whole.audio_encoding)
        full = model.transformer(video, audio, drawn.perturbations)
    assert contexts["video"].shape[1] == mask.shape[1] + 1
    assert bias is not None
    for ours, theirs in zip(merged, full):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_a_distilled_step_ends_where_the_guided_teacher_ends(room: Path, tmp_path: Path) -> None:
    teacher, base = make_task(room), tmp_path / "base.safetensors"
    randomize(
        teacher.model.transformer, torch.Generator().manual_seed(0)
    )  # so that captions make a difference
    teacher.export(base, torch.device("cpu"))
    settings = {
        "start": str(base),
        "gemma": str(room / "gemma"),
        "text_length": 128,
        "precision": "fp32",
        "stages": [{"steps": 20, "batch_size": 4, "caches": [str(room / "cache")]}],
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
        "saving": {"every": 100, "log_every": 1},
        "tasks": {"image": 0.5, "keyframes": 0.0, "audio": 0.0, "region": 0.0, "isolated": 0.0},
        "lora": {"rank": 4},
        "sigmas": [1.0, 0.8, 0.0],
        "teacher_steps": 2,
        "video_guidance": 5.0,
        "audio_guidance": 5.0,
    }

    def distillation(**changes: Any) -> DistillTask:
        return DistillTask(parse_table(DistillRun, settings | changes))

    # One step of an unguided teacher is what the student does already: its LoRA begins at 0.
    plain = distillation(teacher_steps=1, video_guidance=1.0, audio_guidance=1.0)
    batch = plain.batch(0, range(4), torch.device("cpu"))
    assert plain.losses(plain.model, batch, torch.Generator().manual_seed(0))["loss"] < 1e-8

    task = distillation()
    with torch.no_grad():
        scores = [task.losses(task.model, batch, torch.Generator().manual_seed(0))["loss"]]
        path = train(task, tmp_path / "student")
        scores.append(task.losses(task.model, batch, torch.Generator().manual_seed(0))["loss"])
    assert 0 < scores[1] < 0.8 * scores[0]
    assert path.name == "distilled_lora.safetensors"
    assert all(".lora_" in key for key in Checkpoint(path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": {"rank": 0}}, "give lora.rank"),
        ({"sigmas": [1.0, 0.5]}, "fall from at most 1 to 0"),
        (
            {"stages": [{"steps": 1, "batch_size": 1, "caches": ["x"], "schedules": [[1.0, 0.5]]}]},
            "schedules are",
        ),
        (
            {"stages": [{"steps": 1, "batch_size": 1, "caches": ["x", "y"], "schedules": [[1.0, 0.0]]}]},
            "1 schedules for 2 caches",
        ),
        ({"sigmas": [0.5, 0.7, 0.0]}, "fall from at most 1 to 0"),
        ({"teacher_steps": 0}, "teacher_steps is 0"),
        ({"noise": {"mean": 1.0}}, "leave .noise. out"),
    ],
)
def test_distillations_that_cannot_be_are_refused(changes: dict, said: str) -> None:
    stages = [{"steps": 1, "caches": ["z"]}]
    settings = {"start": "x", "gemma": "y", "stages": stages, "lora": {"rank": 1}}
    with pytest.raises(ConfigError, match=said):
        parse_table(DistillRun, settings | changes)
