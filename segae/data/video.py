"""Videos, read and written frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import lazy_loader
import numpy as np
from numpy.typing import NDArray

from segae._io import write_atomically
from segae.data.image_io import UnreadableImage

av = lazy_loader.load("av")  # an extra

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


def _open(path: Path) -> Any:
    # no other formats: a playlist that is called .mp4 would open further files and addresses
    return av.open(path, options={"format_whitelist": "mov,matroska,avi", "protocol_whitelist": "file"})


def read_frames(path: Path, *, max_pixels: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a video, uint8 (H, W, 3), RGB, upright.

    UnreadableImage, after the good frames, if the file is no video or breaks off, or a frame is too large.
    """
    count, end = 0, 0.0
    try:
        with _open(path) as container:
            for frame in container.decode(video=0):
                if frame.width * frame.height > max_pixels:
                    raise ValueError(f"{frame.width} x {frame.height} pixels are more than {max_pixels}")
                yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                count, end = count + 1, frame.time or end
            if (missing := (container.duration or 0) / av.time_base - end) > 1:
                raise ValueError(f"it breaks off {missing:.1f} s before its end")
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise UnreadableImage(path, f"{getattr(error, 'strerror', None) or error}, after {count} frames") from error


def write_video(path: Path, frames: Iterator[NDArray[np.uint8]], *, like: Path) -> None:
    """Encode frames, uint8 (H, W, 3), if there are any, as H.264 at the mean rate of ``like``; sides become even."""

    def encode(file: BinaryIO) -> None:
        with _open(like) as source, av.open(file, "w", format="mp4") as film:
            stream = film.add_stream("libx264", rate=source.streams.video[0].average_rate or 25)
            stream.height, stream.width = (max(2, side // 2 * 2) for side in first[0].shape[:2])
            stream.pix_fmt = "yuv420p"
            for image in chain(first, frames):
                film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            film.mux(stream.encode(None))

    if first := list(islice(frames, 1)):
        write_atomically(path, encode)
