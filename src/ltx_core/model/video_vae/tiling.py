"""Tiles: how a latent grid is cut into overlapping pieces, and how the pieces are blended again.

One geometry serves encoding and decoding: intervals on the latent grid with ramps on either side, mapped to
pixels by the factors 8 (time, the first frame alone) and 32 (height and width).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ltx_core.errors import InputError, ShapeError
from ltx_core.types import VIDEO_SCALE_FACTORS

TIME, SPACE, _ = VIDEO_SCALE_FACTORS
MIN_ENCODE_OVERLAP = {"frames": 16, "pixels": 64}


def _check(size: int, overlap: int, unit: str, least: int, step: int) -> None:
    if size < least:
        raise InputError(f"A tile of {size} {unit} is too small; the least is {least}.")
    if size % step or overlap % step:
        raise InputError(f"Tile size {size} and overlap {overlap} must be multiples of {step} {unit}.")
    if not 0 <= overlap < size:
        raise InputError(
            f"The overlap of {overlap} {unit} must be at least 0 and less than the tile, {size}."
        )


@dataclass(frozen=True)
class SpatialTilingConfig:
    """Tiles of the longer side; the shorter side gets proportionally smaller ones when decoding."""

    tile_size_in_pixels: int
    tile_overlap_in_pixels: int = 0

    def __post_init__(self) -> None:
        _check(self.tile_size_in_pixels, self.tile_overlap_in_pixels, "pixels", 64, SPACE)


@dataclass(frozen=True)
class TemporalTilingConfig:
    """Tiles of the time axis."""

    tile_size_in_frames: int
    tile_overlap_in_frames: int = 0

    def __post_init__(self) -> None:
        _check(self.tile_size_in_frames, self.tile_overlap_in_frames, "frames", 16, TIME)


@dataclass(frozen=True)
class TilingConfig:
    """Tiling in space, in time, or both; an axis without a config is one tile."""

    spatial_config: SpatialTilingConfig | None = None
    temporal_config: TemporalTilingConfig | None = None

    @classmethod
    def default(cls) -> TilingConfig:
        """512 pixels overlapping by 64, 64 frames overlapping by 24."""
        return cls(SpatialTilingConfig(512, 64), TemporalTilingConfig(64, 24))


@dataclass(frozen=True)
class AutoTiling:
    """Stands for the default: exact pieces where a decoder allows it, else tiles of 768 / 64 pixels on the long
    side and 80 / 24 frames."""


AUTO_TILING = AutoTiling()
FRAMES_AT_A_TIME = 8  # of a streamed decode, at every resolution
_AUTO = TilingConfig(SpatialTilingConfig(768, 64), TemporalTilingConfig(80, 24))


@dataclass(frozen=True)
class DimensionSizeConfig:
    """Tile size and overlap of one axis in frames or pixels; size 0 leaves it whole."""

    tile_size: int = 0
    overlap: int = 0


@dataclass(frozen=True)
class TileSizeConfig:
    """Tile sizes axis by axis, as in the current reference."""

    frames: DimensionSizeConfig = field(default_factory=DimensionSizeConfig)
    height: DimensionSizeConfig = field(default_factory=DimensionSizeConfig)
    width: DimensionSizeConfig = field(default_factory=DimensionSizeConfig)


AnyTiling = TilingConfig | TileSizeConfig | AutoTiling

# Source clips above this size are encoded in pieces.
SOURCE_TILING = TileSizeConfig(
    DimensionSizeConfig(80, 24), DimensionSizeConfig(768, 64), DimensionSizeConfig(768, 64)
)


@dataclass(frozen=True)
class Interval:
    """[start, end) on a latent axis with the lengths of its blending ramps, all in latents."""

    start: int
    end: int
    left: int = 0
    right: int = 0

    @property
    def length(self) -> int:
        return self.end - self.start


def split(length: int, size: int, overlap: int) -> list[Interval]:
    """Intervals of `size` overlapping by `overlap`, the last one shorter."""
    if size <= 0 or length <= size:
        return [Interval(0, length)]
    count = -(-(length - overlap) // (size - overlap))
    starts = [i * (size - overlap) for i in range(count)]
    return [
        Interval(start, min(start + size, length), overlap if i else 0, overlap if i < count - 1 else 0)
        for i, start in enumerate(starts)
    ]


def split_time(length: int, size: int, overlap: int) -> list[Interval]:
    """`split`, with one more latent in front of each interval but the first: a causal decoder's first latent
    is a single frame, which then falls where the ramp is zero."""
    first, *rest = split(length, size, overlap)
    return [first, *(Interval(i.start - 1, i.end, i.left + 1, i.right) for i in rest)]


def trapezoid(length: int, left: int, right: int, *, from_zero: bool, device: torch.device) -> torch.Tensor:
    """1 with linear ramps at both ends, float32 (length,). from_zero: the left one starts at exactly 0."""
    mask = torch.ones(length, dtype=torch.float32, device=device)
    left, right = min(left, length), min(right, length)
    if left:
        k = torch.arange(left, dtype=torch.float32, device=device)
        mask[:left] *= k / left if from_zero else (k + 1) / (left + 1)
    if right:
        k = torch.arange(1, right + 1, dtype=torch.float32, device=device)
        mask[length - right :] *= 1 - k / (right + 1)
    return mask.clamp(0, 1)


def frames_of(interval: Interval) -> Interval:
    """A time interval in pixel frames: latent 0 is one frame, each further one eight."""
    left = 0 if interval.left == 0 else 1 + TIME * (interval.left - 1)
    return Interval(TIME * interval.start, 1 + TIME * (interval.end - 1), left, TIME * interval.right)


def pixels_of(interval: Interval) -> Interval:
    """A space interval in pixels."""
    return Interval(
        *(SPACE * value for value in (interval.start, interval.end, interval.left, interval.right))
    )


@dataclass(frozen=True)
class Tile:
    """A piece of a latent (B, C, F, H, W)."""

    time: Interval
    height: Interval
    width: Interval

    @property
    def latents(self) -> tuple[slice, ...]:
        axes = (self.time, self.height, self.width)
        return (slice(None), slice(None), *(slice(i.start, i.end) for i in axes))


class DecodeTile(Tile):
    """A piece of one temporal group: its latents, and where its pixels go."""

    @property
    def place(self) -> tuple[slice, slice]:
        height, width = pixels_of(self.height), pixels_of(self.width)
        return slice(height.start, height.end), slice(width.start, width.end)

    def spatial_mask(self, device: torch.device) -> torch.Tensor:
        """(height, width) blending weights."""
        rows, columns = (
            trapezoid(i.length, i.left, i.right, from_zero=False, device=device)
            for i in (pixels_of(self.height), pixels_of(self.width))
        )
        return rows[:, None] * columns


@dataclass(frozen=True)
class DecodeGroup:
    """The tiles of one temporal interval; `time` is in pixel frames."""

    time: Interval
    tiles: tuple[DecodeTile, ...]


def decode_axes(config: AnyTiling | None, grid: Sequence[int]) -> tuple[list[Interval], ...]:
    """Latent intervals of time, height and width for decoding a latent of `grid` = (F, H, W)."""
    config = _AUTO if isinstance(config, AutoTiling) else config
    if config is None:
        return tuple([Interval(0, length)] for length in grid)
    if isinstance(config, TileSizeConfig):
        return _axes(config, grid)
    time, space = config.temporal_config, config.spatial_config
    frames = (
        (0, 0) if time is None else (time.tile_size_in_frames // TIME, time.tile_overlap_in_frames // TIME)
    )
    sides = []
    for length in grid[1:]:
        if space is None:
            sides.append(split(length, 0, 0))
            continue
        overlap = space.tile_overlap_in_pixels // SPACE
        proportional = round(space.tile_size_in_pixels // SPACE * length / max(grid[1:]))
        sides.append(split(length, max(2, overlap + 1, proportional), overlap))
    return split_time(grid[0], *frames), *sides


def _axes(config: TileSizeConfig, grid: Sequence[int]) -> tuple[list[Interval], ...]:
    frames = _in_latents(config.frames, "frames", TIME)
    height, width = (_in_latents(axis, "pixels", SPACE) for axis in (config.height, config.width))
    return split_time(grid[0], *frames), split(grid[1], *height), split(grid[2], *width)


def _in_latents(axis: DimensionSizeConfig, unit: str, factor: int) -> tuple[int, int]:
    """(size, overlap) of an axis in whole latents. Raises `InputError` where they leave no way forward."""
    size, overlap = axis.tile_size // factor, axis.overlap // factor
    if axis.tile_size and size < 1:
        raise InputError(
            f"A tile of {axis.tile_size} {unit} is too small; the least is {factor}, and 0 is no tiling."
        )
    if axis.tile_size and not 0 <= overlap < size:
        raise InputError(
            f"A tile of {axis.tile_size} {unit} must be larger than its overlap, {axis.overlap}, which must be "
            f"at least 0 (both count in steps of {factor})."
        )
    return size, overlap


def decode_groups(config: AnyTiling | None, grid: Sequence[int]) -> list[DecodeGroup]:
    """All tiles of a decode, in the order in which they are decoded."""
    times, rows, columns = decode_axes(config, grid)
    return [
        DecodeGroup(frames_of(t), tuple(DecodeTile(t, h, w) for h in rows for w in columns)) for t in times
    ]


def check_tile(maker: str, part: torch.Tensor, place: torch.Tensor) -> None:
    """Raise `ShapeError` if what a network made of a tile is not of the size of its place in the whole."""
    if part.shape != place.shape:
        made, expected = ("x".join(map(str, x.shape[2:])) for x in (part, place))
        raise ShapeError(
            f"Tiles go by 8 frames and 32 pixels a latent, but this video {maker} makes {made} where they have "
            f"{expected}; use it without tiles."
        )


def spatial_weights(
    tiles: Iterable[DecodeTile], height: int, width: int, device: torch.device
) -> torch.Tensor:
    """(height, width) sum of the tiles' masks; 1 where ramps do not collide."""
    total = torch.zeros(height, width, dtype=torch.float32, device=device)
    for tile in tiles:
        total[tile.place] += tile.spatial_mask(device)
    return total.clamp(min=1e-8)


def overlap_add(groups: Iterable[tuple[Interval, torch.Tensor]]) -> Iterator[torch.Tensor]:
    """Blend consecutive (frame interval, frames (B, C, f, H, W)) along time; yields frames once they are final.

    One result per group, an empty one where the next group begins at the same frame. Only the overlap with the
    next group is kept.
    """
    start = 0
    values: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    for time, frames in groups:
        mask = trapezoid(time.length, time.left, time.right, from_zero=True, device=frames.device)
        frames = frames * mask[:, None, None]
        if values is None or weights is None:
            start, values, weights = time.start, frames, mask
            continue
        done, shared = time.start - start, start + values.shape[2] - time.start
        if shared > 0:
            frames[:, :, :shared] += values[:, :, done:]
            mask[:shared] += weights[done:]
        yield values[:, :, :done] / weights[:done, None, None].clamp(min=1e-8)
        start, values, weights = time.start, frames, mask
    if values is not None and weights is not None:
        yield values / weights[:, None, None].clamp(min=1e-8)


class EncodeTile(Tile):
    """A piece of a video to encode, and where its latents go."""

    @property
    def pixels(self) -> tuple[slice, ...]:
        axes = (frames_of(self.time), pixels_of(self.height), pixels_of(self.width))
        return (slice(None), slice(None), *(slice(i.start, i.end) for i in axes))

    def mask(self, device: torch.device) -> torch.Tensor:
        """(f, h, w) blending weights on the latent grid."""
        time, rows, columns = (
            trapezoid(i.length, i.left, i.right, from_zero=i is self.time, device=device)
            for i in (self.time, self.height, self.width)
        )
        return time[:, None, None] * rows[:, None] * columns


def encode_tiles(config: AnyTiling | None, grid: Sequence[int]) -> list[EncodeTile]:
    """The tiles for encoding a video whose latent has `grid` = (F, H, W).

    Raises `InputError` for overlaps that leave no room for a ramp.
    """
    sizes = _encode_sizes(config)
    for axis, unit, least in (
        (sizes.frames, "frames", MIN_ENCODE_OVERLAP["frames"]),
        (sizes.height, "pixels", MIN_ENCODE_OVERLAP["pixels"]),
        (sizes.width, "pixels", MIN_ENCODE_OVERLAP["pixels"]),
    ):
        if axis.tile_size and axis.overlap < least:
            raise InputError(
                f"Encoding in tiles needs an overlap of at least {least} {unit}, not {axis.overlap}."
            )
    times, rows, columns = _axes(sizes, grid)
    return [EncodeTile(t, h, w) for t in times for h in rows for w in columns]


def _encode_sizes(config: AnyTiling | None) -> TileSizeConfig:
    if config is None:
        return TileSizeConfig()
    if isinstance(config, AutoTiling):
        return SOURCE_TILING
    if isinstance(config, TileSizeConfig):
        return config
    time, space = config.temporal_config, config.spatial_config
    side = DimensionSizeConfig()
    if space is not None:
        side = DimensionSizeConfig(space.tile_size_in_pixels, space.tile_overlap_in_pixels)
    frames = DimensionSizeConfig()
    if time is not None:
        frames = DimensionSizeConfig(time.tile_size_in_frames, time.tile_overlap_in_frames)
    return TileSizeConfig(frames, side, side)


def blend(
    tiles: Iterable[tuple[EncodeTile, torch.Tensor]], shape: Sequence[int], device: torch.device
) -> torch.Tensor:
    """Tiles' latents averaged by their masks, float32 of `shape` = (B, C, F, H, W)."""
    values = torch.zeros(tuple(shape), dtype=torch.float32, device=device)
    weights = torch.zeros(tuple(shape[2:]), dtype=torch.float32, device=device)
    for tile, latent in tiles:
        mask = tile.mask(device)
        check_tile("encoder", latent, values[tile.latents])
        values[tile.latents] += latent * mask
        weights[tile.latents[2:]] += mask
    return values / weights.clamp(min=1e-8)


def get_video_chunks_number(num_frames: int, tiling_config: AnyTiling | None = None) -> int:
    """About how many chunks a decode yields, for progress bars: ceil((frames - 1) / (tile - overlap))."""
    config = tiling_config
    if isinstance(config, AutoTiling):
        return -(-num_frames // FRAMES_AT_A_TIME)
    if isinstance(config, TileSizeConfig):
        advance = config.frames.tile_size - config.frames.overlap
    elif config is None or config.temporal_config is None:
        advance = 0
    else:
        time = config.temporal_config
        advance = time.tile_size_in_frames - time.tile_overlap_in_frames
    return 1 if advance <= 0 else (num_frames - 1 + advance - 1) // advance
