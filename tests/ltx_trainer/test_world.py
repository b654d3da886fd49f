"""The world: exact, seeded, fair in what it holds out, and told in words that say what is true."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ltx_core.errors import InputError
from ltx_trainer.world import World, WorldConfig, read_caption
from ltx_trainer.world.caption import for_testing
from ltx_trainer.world.scene import Scene, sample_path
from ltx_trainer.world.shapes import AREA, FOOT, STAR_OUTER, signed_distance
from ltx_trainer.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    FLOOR_LEVEL,
    MOTIONS,
    REACH,
    ROUND,
    SHAPES,
    SOUND_OF,
    STYLES,
    TIMBRES,
    combinations,
    exists,
    held_out,
)

SMALL = WorldConfig(height=48, width=48)


def test_clip_has_the_shapes_it_promises() -> None:
    config = WorldConfig(height=48, width=80, frames=25, fps=24.0, sample_rate=24_000)
    batch = World(config).batch([3, 5])
    assert batch.video.shape == (2, 25, 48, 80, 3)
    assert batch.video.dtype == torch.uint8
    assert batch.audio.shape == (2, 2, 25_000)
    assert batch.audio.abs().max() <= 1
    clip = batch[1]
    assert clip.truth.position.shape == (25, 2)
    assert clip.truth.radius.shape == clip.truth.angle.shape == (25,)
    assert clip.caption == batch.captions[1]
    assert torch.equal(clip.keyframes([0, -1]), clip.video[[0, 24]])


def test_same_number_same_clip_in_any_batch_and_any_world() -> None:
    one = World(SMALL).clip(7)
    other = World(SMALL).batch([2, 7, 11])[1]
    assert torch.equal(one.video, other.video)
    assert torch.equal(one.audio, other.audio)
    assert one.caption == other.caption
    assert one.truth.scene == other.truth.scene


def test_seeds_and_numbers_give_different_clips() -> None:
    world = World(SMALL)
    scenes = {world.truth(i).scene for i in range(50)} | {World(WorldConfig(seed=1)).truth(0).scene}
    assert len(scenes) == 51


def test_the_world_ignores_global_random_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    np.random.seed(0)
    World(SMALL).batch(range(6))
    assert torch.equal(before, torch.get_rng_state())


def test_two_sizes_show_the_same_clip() -> None:
    small = World(SMALL).batch(range(6))
    large = World(WorldConfig(height=96, width=96)).batch(range(6))
    assert small.captions == large.captions
    assert torch.equal(small.audio, large.audio)
    shrunk = large.video.float().unflatten(2, (48, 2)).unflatten(4, (48, 2)).mean(dim=(3, 5))
    assert (shrunk - small.video.float()).abs().mean() < 1.0


def test_truth_matches_the_pixels() -> None:
    world = World(WorldConfig(height=96, width=128))
    truths = [world.truth(i) for i in range(12)]
    masks = world.masks(truths)
    x, y = (torch.arange(128) + 0.5) / 128, (torch.arange(96) + 0.5) / 96
    for truth, mask in zip(truths, masks):
        weight = mask / mask.sum(dim=(1, 2), keepdim=True)
        seen = torch.stack(((weight.sum(dim=1) @ x), (weight.sum(dim=2) @ y)), dim=-1).numpy()
        np.testing.assert_allclose(seen, truth.position, atol=0.004)
        area = mask.sum(dim=(1, 2)).numpy() / 96**2
        np.testing.assert_allclose(area, AREA[truth.scene.shape] * truth.radius**2, rtol=0.03)


def test_objects_stay_inside_the_frame() -> None:
    for size in ((64, 64), (48, 96), (96, 48)):
        world = World(WorldConfig(*size))
        masks = world.masks([world.truth(i) for i in range(40)])
        assert max(masks[:, :, row].max() for row in (0, -1)) < 0.02
        assert max(masks[..., column].max() for column in (0, -1)) < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_bouncing_objects_touch_the_floor_when_they_ring(shape: str) -> None:
    config = WorldConfig(frames=33, motions=("bounce",))
    world = World(config)
    truth = next(t for t in map(world.truth, range(500)) if t.scene.shape == shape)
    path = truth.scene.path
    assert len(truth.onsets) >= 2
    assert path.y + FOOT[shape] * path.radius == pytest.approx(FLOOR_LEVEL - 0.5)
    height = truth.position[:, 1]
    for onset in truth.onsets:
        frame = round(onset * config.fps)
        if 1 <= frame < 31:
            assert height[frame] > height[[frame - 2, frame + 2]].max() if frame >= 2 else True
    audio = world.render([truth]).audio[0].abs().sum(dim=0)
    first = round(truth.onsets[0] * config.sample_rate)
    assert audio[: first - 1].max() == 0
    assert audio[first : first + 200].max() > 0.2


def test_sounds_belong_to_motions() -> None:
    world = World(WorldConfig(height=16, width=16))
    loud = {m: [] for m in MOTIONS}
    for clip in world.batch(range(120)):
        loud[clip.truth.scene.motion].append(float(clip.audio.abs().max()))
    assert max(loud["stay"]) == 0
    assert all(min(loud[motion]) > 0.1 for motion in MOTIONS if motion != "stay")
    assert set(SOUND_OF) == set(MOTIONS)
    assert set(TIMBRES) == set(SHAPES)


def test_sound_is_where_the_object_is() -> None:
    world = World(WorldConfig(height=16, width=16, motions=("right",)))
    for clip in world.batch(range(8)):
        third = clip.audio.shape[1] // 3
        start, end = clip.audio[:, :third].norm(dim=1), clip.audio[:, -third:].norm(dim=1)
        assert end[1] / end[0] > start[1] / start[0]


def test_training_never_shows_what_is_held_out() -> None:
    for split, unseen in (("train", False), ("test", False), ("unseen", True)):
        world = World(WorldConfig(split=split))
        truths = [world.truth(i) for i in range(300)]
        assert {truth.scene.unseen for truth in truths} == {unseen}
        assert {for_testing(truth.caption) for truth in truths} == {split != "train"}


def test_every_pair_of_attributes_is_seen_in_training() -> None:
    seen = [
        combination
        for combination in itertools.product(SHAPES, COLOURS, MOTIONS)
        if exists(combination[0], combination[1], "", combination[2]) and not held_out(*combination)
    ]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        possible = {
            (c[first], c[second])
            for c in itertools.product(SHAPES, COLOURS, MOTIONS)
            if exists(c[0], c[1], "", c[2])
        }
        assert {(c[first], c[second]) for c in seen} == possible
    assert len(list(combinations(unseen=True))) == 43
    assert not held_out("ball", "red", "bounce")


def test_captions_say_what_is_true() -> None:
    world = World(SMALL)
    stated: set[str] = set()
    for index in range(1500):
        truth = world.truth(index)
        said = read_caption(truth.caption)
        assert said == {name: getattr(truth.scene, name) for name in truth.stated}, truth.caption
        stated |= truth.stated
    assert stated == {"shape", "colour", "size", "background", "motion", "sound"}


def test_captions_vary() -> None:
    world = World(SMALL)
    truth = world.truth(0)
    rng = np.random.default_rng(0)
    assert len({world.describe(truth.scene, rng).caption for _ in range(200)}) > 150


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        (
            "A red ball bounces on a blue floor.",
            {"shape": "ball", "colour": "red", "motion": "bounce", "background": "blue"},
        ),
        ("a blue circle moves in a circle", {"shape": "ball", "colour": "blue", "motion": "orbit"}),
        ("An orange hoop", {"shape": "ring", "colour": "orange"}),
        ("Something else entirely.", {}),
    ],
)
def test_captions_can_be_read(caption: str, said: dict[str, str]) -> None:
    assert read_caption(caption) == said


def test_stills_are_single_frames_of_any_moment() -> None:
    world = World(WorldConfig(height=48, width=48, frames=1))
    batch = world.batch(range(40))
    assert batch.video.shape == (40, 1, 48, 48, 3)
    assert not any("motion" in truth.stated for truth in batch.truths)
    lefts = [t.position[0, 0] for t in map(world.truth, range(600)) if t.scene.motion == "left"]
    assert min(lefts) < 0.35
    assert max(lefts) > 0.65


@pytest.mark.parametrize("style", STYLES)
def test_styles_keep_the_outline(style: str) -> None:
    world = World(WorldConfig(height=64, width=64, style=style))
    plain = World(WorldConfig(height=64, width=64))
    truths = [world.truth(i) for i in range(3)]
    assert torch.equal(world.masks(truths), plain.masks([plain.truth(i) for i in range(3)]))
    same = torch.equal(world.render(truths).video, plain.batch(range(3)).video)
    assert same == (style == "plain")


def test_outlines_lie_on_the_edge() -> None:
    world = World(WorldConfig(height=96, width=96))
    truths = [world.truth(i) for i in range(6)]
    lines, masks = world.outlines(truths), world.masks(truths)
    assert lines.shape == (6, 17, 96, 96, 3)
    edge = (masks > 0) & (masks < 1)
    assert lines[..., 0][edge].float().mean() > 180
    assert (lines[..., 0] > 128).float().mean() < 0.1


def test_a_change_changes_only_what_it_should() -> None:
    world = World(SMALL)
    truth = next(
        t for t in map(world.truth, range(500)) if t.scene.motion == "bounce" and t.scene.colour == "red"
    )
    changed = world.change(truth, colour="yellow")
    assert changed.scene.colour == "yellow"
    assert changed.scene.path == truth.scene.path
    assert changed.onsets == truth.onsets
    moved = world.change(truth, motion="left")
    assert (moved.scene.motion, moved.onsets) == ("left", ())


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_new_motion_begins_where_the_old_one_did_and_stays_in_the_frame(motion: str) -> None:
    world = World(WorldConfig())
    room = {"left": (0, 1), "right": (0, -1), "up": (1, 1), "down": (1, -1)}
    for number in range(40):
        truth = world.truth(number)
        if motion == "spin" and truth.scene.shape in ROUND:
            continue
        changed = world.change(truth, number, motion=motion)
        off = changed.position - truth.position[0]
        if motion in room:  # no further off than it takes to have a way to go
            axis, sign = room[motion]
            assert np.abs(off[0, 1 - axis]) < 1e-5
            assert 0.15 < -sign * (off[-1] - off[0])[axis] < 0.61
        else:
            assert np.abs(off[0]).max() < 0.15
        reach = (changed.radius * REACH)[:, None]
        assert (changed.position > reach - 0.05).all()
        assert (changed.position < 1.05 - reach).all()


def test_another_motion_is_one_that_has_room() -> None:
    world = World(WorldConfig())
    found = set()
    for number in range(200):
        truth = world.truth(number)
        other = world.another(truth, number, "motion")
        assert other.scene.motion != truth.scene.motion
        if other.scene.motion in ("left", "right", "up", "down"):
            assert np.abs(other.position[0] - truth.position[0]).max() < 1e-5
        found.add(other.scene.motion)
    assert found == set(MOTIONS)


def test_distances_are_right_on_the_axes() -> None:
    x, y = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.0, 3.0, 0.0])
    ball = signed_distance("ball", x, y)
    assert ball.tolist() == [-1.0, 2.0, 1.0]
    assert torch.equal(x, torch.tensor([0.0, 0.0, 2.0]))
    for shape in set(SHAPES) - {"star"}:
        edge = signed_distance(shape, torch.zeros(1), torch.tensor([FOOT[shape]]))
        assert edge.item() == pytest.approx(0.0, abs=1e-5)
    side = torch.tensor([STAR_OUTER * math.sin(math.pi / 5)])  # it stands on two points
    assert signed_distance("star", side, torch.tensor([FOOT["star"]])).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"frames": 16}, "8k \\+ 1"),
        ({"frames": 0}, "8k \\+ 1"),
        ({"height": 8}, "too small"),
        ({"fps": 0.0}, "fps"),
        ({"sample_rate": 100}, "sample_rate"),
        ({"split": "dev"}, "split"),
        ({"style": "cubist"}, "style"),
        ({"motions": ("fly",)}, "motions"),
        ({"motions": ()}, "motions"),
        ({"shapes": ("cube",)}, "shapes"),
        ({"shapes": ()}, "shapes"),
        ({"shapes": ("ball", "ring"), "motions": ("spin",)}, "add others"),
        ({"shapes": ("ball",), "motions": ("up",), "split": "unseen"}, "add others"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_configs_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        WorldConfig(**fields)


def test_scenes_that_cannot_be_seen_are_refused() -> None:
    room = SMALL.room
    path = sample_path(np.random.default_rng(0), room, "ball", "big", "stay")
    with pytest.raises(InputError, match="cannot be seen"):
        Scene("ball", "blue", "big", "blue", "stay", path)
    with pytest.raises(InputError, match="cannot be seen"):
        Scene("ball", "red", "big", "blue", "spin", path)
    with pytest.raises(InputError, match="Unknown shape 'cube'"):
        Scene("cube", "red", "big", "blue", "stay", path)
    assert not any(exists("ball", name, name, "stay") for name in BACKGROUNDS)


@pytest.mark.gpu
def test_the_gpu_draws_the_same_world() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    here, there = World(SMALL).batch(range(8)), World(SMALL, device="cuda").batch(range(8))
    assert (here.video.float() - there.video.cpu().float()).abs().max() <= 1
    assert (here.audio - there.audio.cpu()).abs().max() < 2e-2
