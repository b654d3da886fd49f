"""Opening media files with one clear error for whatever can be wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltx_core.errors import MediaError, MissingMediaError


@contextmanager
def open_media(path: str | Path, kind: str) -> Iterator[tuple[Any, Any]]:
    """(container, its first stream of `kind` "video" or "audio"; None for a missing audio stream).

    Raises `MissingMediaError` (a FileNotFoundError) if there is no such file, `MediaError` if it cannot be decoded
    or has no video stream.
    """
    import av

    if Path(path).is_dir():
        raise MediaError(f"{path} is a folder, not a media file.")
    if not Path(path).is_file():
        raise MissingMediaError(f"{path} does not exist; check the path.")
    try:
        with _opened(path) as container:
            streams = getattr(container.streams, kind)
            if not streams and kind == "video":
                raise MediaError(f"{path} has no video; give a video file.")
            stream = streams[0] if streams else None
            if stream is not None:
                if stream.codec_context is None:
                    raise MediaError(f"{path} has {kind} in a format that cannot be decoded; convert it.")
                stream.thread_type = "AUTO"
            yield container, stream
    except av.FFmpegError as error:
        raise MediaError(f"{path} cannot be decoded ({error.strerror or error}); is it complete?") from None


def _opened(path: str | Path) -> Any:
    """The container of a file, whatever bytes its tags hold."""
    import av

    # Absolute: FFmpeg would take what is before the colon of "take:2.mp4" for a protocol.
    name = os.path.abspath(path)
    try:
        return av.open(name, metadata_errors="surrogateescape")
    except TypeError:  # a PyAV that has no such choice any more
        return av.open(name)
