"""The oracle: right on ground truth, also through codecs; notices what is wrong; not fooled by nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from ltx_core.errors import InputError
from ltx_trainer.oracle import Wanted, judge, judge_file, measure, overlap, sensible_path
from ltx_trainer.oracle.degrade import through_codecs
from ltx_trainer.oracle.hearing import listen, resample
from ltx_trainer.oracle.judge import pair, together
from ltx_trainer.oracle.motion import find_impacts
from ltx_trainer.oracle.validate import CONDITIONS, SWAPS, accuracy, main, swapped
from ltx_trainer.world import World, WorldConfig
from ltx_trainer.world.vocabulary import GRAVITY, MOTIONS

CONFIG = WorldConfig(height=64, width=64, split="test", motions=(*MOTIONS, *("bounce",) * 3))
BOUNCING = WorldConfig(height=64, width=64, motions=("bounce",))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_right_on_ground_truth(condition: str) -> None:
    scores = accuracy(World(replace(CONFIG, seed=1)), 25, CONDITIONS[condition])
    assert {"shape", "colour", "size", "background", "motion", "sound", "timbre", "synchrony"} <= set(scores)
    assert {name: right for name, (right, of) in scores.items() if right < of} == {}


def test_what_is_wrong_counts() -> None:
    """Clips whose red and blue are exchanged, without sound: most colours, and all sounds but silence, are wrong."""
    scores = accuracy(World(CONFIG), 20, lambda clip, config, index: (clip.video.flip(-1), clip.audio * 0))
    assert scores["colour"][1] == scores["sound"][1] == 20
    assert scores["colour"][0] < 15
    assert scores["sound"][0] < 10
    assert scores["shape"][0] > 15


@pytest.mark.parametrize("size", [(96, 160), (160, 96)])
def test_right_in_other_formats(size: tuple[int, int]) -> None:
    config = replace(CONFIG, height=size[0], width=size[1], frames=25, fps=16.0, sample_rate=48_000)
    scores = accuracy(World(config), 12)
    assert all(right == of for right, of in scores.values()), scores


@pytest.mark.parametrize("attribute", SWAPS)
def test_notices_what_was_swapped_and_only_that(attribute: str) -> None:
    noticed, rest, of = swapped(
        World(BOUNCING if attribute in ("timbre", "synchrony") else CONFIG), 16, attribute
    )
    assert of > 5
    assert (noticed, rest) == (of, of)


@pytest.mark.parametrize("style", ["striped", "inverted", "night"])
def test_sees_through_styles(style: str) -> None:
    scores = accuracy(World(replace(CONFIG, style=style)), 12)
    assert all(right == of for right, of in scores.values()), scores


def test_stated_attributes_only() -> None:
    world = World(CONFIG)
    truth = next(t for t in map(world.truth, range(200)) if "colour" not in t.stated and "shape" in t.stated)
    clip = world.render([truth])[0]
    verdict = judge(clip.video, CONFIG.fps, clip.audio, CONFIG.sample_rate, truth)
    assert "colour" not in verdict.right
    assert verdict.right["shape"]
    assert all(verdict.right.values())


def test_a_caption_can_be_what_is_wanted() -> None:
    world = World(CONFIG)
    truth = next(t for t in map(world.truth, range(200)) if t.scene.motion == "bounce")
    clip = world.render([truth])[0]
    scene = truth.scene
    caption = f"A {scene.colour} {scene.shape} bounces on a {scene.background} floor."
    verdict = judge(clip.video, CONFIG.fps, clip.audio, CONFIG.sample_rate, caption)
    assert set(verdict.right) == {"shape", "colour", "background", "motion", "sound", "timbre", "synchrony"}
    assert all(verdict.right.values())
    assert max(map(abs, verdict.offsets)) < 0.01
    wrong = caption.replace("bounces", "stays still")
    verdict = judge(clip.video, CONFIG.fps, clip.audio, CONFIG.sample_rate, wrong)
    assert [name for name, right in verdict.right.items() if not right] == ["motion", "sound"]


@pytest.mark.parametrize("kind", ["blank", "noise", "still noise"])
def test_nothing_is_seen_where_nothing_is(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.full((17, 64, 64, 3), 130, dtype=torch.uint8)
    if kind == "noise":
        frames = torch.randint(0, 256, frames.shape, dtype=torch.uint8, generator=generator)
    if kind == "still noise":
        one = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8, generator=generator)
        frames = one.expand(17, -1, -1, -1)
    measured = measure(frames, CONFIG.fps, None, 16_000)
    assert measured.shape is None
    assert measured.motion is None or kind != "blank"
    assert measured.sound == "silence"


def test_two_objects_are_not_one() -> None:
    world = World(replace(CONFIG, motions=("stay",)))
    truth = next(
        t for t in map(world.truth, range(300)) if t.scene.size == "small" and t.position[0, 0] < 0.3
    )
    clip = world.render([truth])[0]
    double = torch.where(torch.arange(64)[None, None, :, None] < 32, clip.video, clip.video.flip(2))
    assert measure(clip.video, CONFIG.fps, None, 16_000).shape == truth.scene.shape
    assert measure(double, CONFIG.fps, None, 16_000).shape is None


def test_an_object_that_vanishes_has_no_motion() -> None:
    world = World(replace(CONFIG, motions=("left",)))
    video = world.clip(0).video.clone()
    video[8:] = video[8:, :, :1].clone()
    measured = measure(video, CONFIG.fps, None, 16_000)
    assert measured.motion is None
    assert np.isnan(measured.position[8:]).all()


def test_measured_place_and_cover_follow_the_truth() -> None:
    world = World(replace(CONFIG, height=96, width=128))
    batch = world.batch(range(10))
    masks = world.masks(batch.truths)
    for clip, mask in zip((batch[k] for k in range(10)), masks):
        measured = measure(clip.video, CONFIG.fps, clip.audio, 16_000)
        np.testing.assert_allclose(measured.position, clip.truth.position, atol=0.01)
        np.testing.assert_allclose(measured.radius, clip.truth.radius, rtol=0.06)
        assert overlap(measured.cover, mask) > 0.85
        assert sensible_path(measured, clip.truth, (0, 8, -1))


def test_senseless_paths_are_told() -> None:
    world = World(replace(CONFIG, motions=("left",)))
    clip, other = world.clip(0), world.change(world.truth(0), motion="up")
    jumping = clip.video.clone()
    jumping[4:12] = world.render([other])[0].video[4:12]
    assert not sensible_path(measure(jumping, CONFIG.fps, None, 16_000), clip.truth, (0, -1))
    assert not sensible_path(measure(clip.video.flip(0), CONFIG.fps, None, 16_000), clip.truth, (0, -1))


@pytest.mark.parametrize("fps", [12.0, 16.0, 24.0, 25.0])
def test_impacts_are_found_between_frames(fps: float) -> None:
    period = 0.47
    time = np.arange(int(2 * fps)) / fps
    for first in np.linspace(0.2, 0.5, 13):
        hop = np.mod((time - first) / period, 1)
        y = -0.5 * GRAVITY * period**2 * hop * (1 - hop)
        found = np.array(find_impacts(time, y))
        true = first + period * np.arange(-2, 5)
        inner = true[(true > 2.5 / fps) & (true < time[-1] - 2.5 / fps)]
        nearest = np.abs(found[:, None] - inner[None]).min(axis=0)
        assert nearest.max() < 0.004


def test_onsets_are_heard_at_any_rate_and_in_mono() -> None:
    world = World(BOUNCING)
    for index in range(6):
        clip = world.clip(index)
        for wave, rate in (
            (clip.audio, 16_000),
            (resample(clip.audio, 16_000, 44_100), 44_100),
            (clip.audio[0], 16_000),
        ):
            heard = listen(wave, rate)
            assert heard.sound == "impacts"
            assert heard.timbre == clip.truth.scene.timbre
            assert together(heard.onsets, clip.truth.onsets, (0.1, 0.95))
            close = [
                abs(heard.onsets[i] - clip.truth.onsets[j]) for i, j in pair(heard.onsets, clip.truth.onsets)
            ]
            assert max(close) < 0.008


def test_resampling_keeps_a_tone() -> None:
    time = torch.arange(24_000) / 48_000
    wave = torch.sin(2 * torch.pi * 440 * time)[None] * torch.hann_window(24_000)
    down = resample(wave, 48_000)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(8000) / 16_000) * torch.hann_window(24_000)[::3]
    assert (down[0] - expected).abs().max() < 1e-3


def test_pairs_are_one_to_one() -> None:
    assert pair((0.1, 0.5), (0.49, 0.52, 0.12)) == [(0, 2), (1, 0)]
    assert together((0.1, 0.5), (0.12, 0.47), (0, 1))
    assert not together((0.1, 0.5), (0.12, 0.6), (0, 1))
    assert not together((0.1,), (0.12, 0.6), (0, 1))
    assert together((0.1,), (0.12, 0.6), (0, 0.55))
    assert not together((), (), (0, 1))


def test_given_impacts_can_be_asked_for() -> None:
    clip = World(BOUNCING).clip(1)
    right = Wanted(motion="bounce", onsets=clip.truth.onsets)
    wrong = replace(right, onsets=tuple(onset + 0.15 for onset in clip.truth.onsets))
    good = judge(clip.video, CONFIG.fps, clip.audio, 16_000, right).right
    bad = judge(clip.video, CONFIG.fps, clip.audio, 16_000, wrong).right
    assert good["onsets"]
    assert good["impacts"]
    assert not bad["onsets"]
    assert not bad["impacts"]
    assert bad["synchrony"]


def test_codecs_keep_time() -> None:
    clip = World(BOUNCING).clip(0)
    frames, wave = through_codecs(clip.video, CONFIG.fps, clip.audio, 16_000)
    assert frames.shape == clip.video.shape
    assert wave.shape == clip.audio.shape
    offsets = judge(frames, CONFIG.fps, wave, 16_000, Wanted(motion="bounce")).offsets
    assert offsets
    assert max(map(abs, offsets)) < 0.03


def test_files_can_be_judged(tmp_path) -> None:
    media = pytest.importorskip(
        "ltx_pipelines.utils.media_io", reason="reading and writing media is not there yet"
    )
    types = pytest.importorskip("ltx_core.types")
    world = World(replace(BOUNCING, height=128, width=128))
    clip = world.clip(2)
    path = tmp_path / "clip.mp4"
    media.encode_video(clip.video, 24, types.Audio(clip.audio, 16_000), str(path), 1)
    verdict = judge_file(path, clip.truth)
    assert all(verdict.right.values()), verdict.right
    assert max(map(abs, verdict.offsets)) < 0.03


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(0, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 3),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
    ],
)
def test_bad_frames_are_refused(frames: torch.Tensor) -> None:
    with pytest.raises(InputError, match="must be uint8"):
        measure(frames, CONFIG.fps, None, 16_000)


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--clips", "4", "--size", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| right, %")
    assert len(list(itertools.takewhile(bool, lines))) > 8
    assert any(line.startswith("| synchrony") for line in lines)


def test_clips_that_cannot_be_are_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--frames", "10"]) == 2
    assert capsys.readouterr().err.startswith("ltx: error: frames is 10")
