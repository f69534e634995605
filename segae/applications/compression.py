"""Lossy image compression with an autoencoder: the codes of square tiles, quantized and range-coded."""

import math
import struct
import zlib
from bisect import bisect_left
from typing import Any

import cv2
import lazy_loader
import numpy as np
import torch
from numpy.typing import NDArray

from segae._io import check_range, require_package
from segae.applications.generation import code_shape, decode_codes, encode_images, open_autoencoder, read_pixels
from segae.data.image_io import MAX_PIXELS
from segae.errors import CheckpointError, DataError, SegaeError
from segae.models import Autoencoder, PathLike, fingerprint

constriction = lazy_loader.load("constriction")  # an extra

_MAGIC = b"SGAC\x01"  # the last is the version
_HEADER = struct.Struct("<5s8sIIfH")  # magic, model, height, width, step, largest distance from a center
_CHANNEL = np.dtype([("center", "<i2"), ("decay", "u1")])  # decay in 1/256, at least 1
_DENSEST = 800  # symbols per byte; with the smallest decay one takes 0.011 bits
_STEPS = 2.0 ** (np.arange(-48, 49) / 8)  # of the search, in standard deviations of the code
_LARGEST, _COARSEST, _LOSS = 32_767, 1e9, 0.5  # symbol, step, dB


def compress(
    image: Any, model: Autoencoder | PathLike, *, target_psnr: float = 0, bits_per_pixel: float = 0, step: float = 0
) -> bytes:
    """Compress an image, such as ``compress("cat.jpg", "autoencoder.safetensors", bits_per_pixel=0.5)``.

    The image, a file or an array uint8 (H, W, 3), is padded at the right and below, and cut into squares of the model's
    image size. Equal input gives equal bytes on one machine. One setting may be above 0: ``target_psnr``, the smallest
    peak signal-to-noise ratio in dB, ``bits_per_pixel``, the largest size, or the ``step`` of the quantization in units
    of the code. Without one, quantization costs at most 0.5 dB. SegaeError: a model with skips or of something else
    than pixels, another image, a setting out of range, or a target that no step reaches.
    """
    require_package("constriction", "compression")
    given = {"target_psnr": target_psnr, "bits_per_pixel": bits_per_pixel, "step": step}
    for name, value in given.items():
        check_range(name, value, low=0, high=_COARSEST)
    if sum(map(bool, given.values())) > 1:
        raise SegaeError(f"one of {', '.join(given)} must be above 0, got {given}")
    network, pixels = open_autoencoder(model), read_pixels(image)
    (height, width), side = pixels.shape[:2], network.encoder.info.format.shape[0]
    rows, columns = _count_tiles(height, width, side)
    padded = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    tiles = padded.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    codes = encode_images(tiles, network).transpose(0, 1).flatten(1).numpy()
    largest, mark = max(float(np.abs(codes).max()), 1e-3), fingerprint(network.state_dict())[:8].encode()

    def write(step: float) -> bytes:
        if largest / step > _LARGEST:
            raise SegaeError(f"step must be >= {largest / _LARGEST:.3g} for this image, got {step}")
        symbols = np.rint(codes / np.float32(step)).astype(np.int32)
        channels = np.zeros(len(codes), _CHANNEL)
        channels["center"] = np.rint(np.median(symbols, axis=1))
        symbols -= channels["center"][:, None]
        mean, spread = np.abs(symbols).mean(axis=1), max(int(np.abs(symbols).max()), 1)
        likely = 255 * mean / (1 + np.sqrt(1 + mean**2))
        channels["decay"] = np.rint(likely).clip(min=1)  # no symbol is free, so a small file cannot fill the memory
        coder = constriction.stream.queue.RangeEncoder()
        for values, decay in zip(symbols, channels["decay"], strict=True):
            coder.encode(values + np.int32(spread), _table(decay, spread))
        header = _HEADER.pack(_MAGIC, mark, height, width, step, spread)
        body = header + channels.tobytes() + coder.get_compressed().astype("<u4").tobytes()
        return body + zlib.crc32(body).to_bytes(4, "little")

    def cost(step: float) -> float:  # falls along the order of the search
        data = write(step)
        return 8 * len(data) / height / width if bits_per_pixel else -cv2.PSNR(pixels, decompress(data, network))

    if not step:
        steps = np.maximum(_STEPS * codes.std(), 1.001 * largest / _LARGEST)
        order = steps.astype(np.float32).tolist()[:: 1 if bits_per_pixel else -1]
        least = cost(order[-1])
        limit = bits_per_pixel or -(target_psnr or -least - _LOSS)
        if least > limit:
            name, bound = ("bits_per_pixel", ">=") if bits_per_pixel else ("target_psnr", "<=")
            raise SegaeError(f"{name} must be {bound} {abs(least):.3f} for this image and model, got {abs(limit)}")
        step = order[bisect_left(order, True, key=lambda one: cost(one) <= limit)]
    return write(step)


def decompress(data: bytes, model: Autoencoder | PathLike) -> NDArray[np.uint8]:
    """Return the image uint8 (H, W, 3) of what `compress` returned, such as ``decompress(data, model)``.

    SegaeError: data of another program or version, damaged or cut off, or a model with other weights.
    """
    require_package("constriction", "compression")
    body, network = data[:-4], open_autoencoder(model)
    if data[:5] != _MAGIC:
        raise DataError(f"data must begin with {_MAGIC!r}, as segae compress writes it, got {data[:5]!r}")
    if len(body) < _HEADER.size or zlib.crc32(body).to_bytes(4, "little") != data[-4:]:
        raise DataError(f"data must be whole and unchanged, got {len(data)} bytes that are damaged or cut off")
    _, mark, height, width, step, spread = _HEADER.unpack_from(body)
    if mark != (own := fingerprint(network.state_dict())[:8].encode()):
        raise CheckpointError(f"model must be the one that compressed, with weights {mark!r}, got {own!r}")
    check_range("step in data", step, low=0, high=_COARSEST)
    side, (count, *shape) = network.encoder.info.format.shape[0], code_shape(network)
    rows, columns = _count_tiles(height, width, side)
    try:
        channels = np.frombuffer(body, _CHANNEL, count, _HEADER.size)
        words = np.frombuffer(body, "<u4", offset=_HEADER.size + channels.nbytes).astype(np.uint32)
        coder, each = constriction.stream.queue.RangeDecoder(words), rows * columns * math.prod(shape)
        if count * each > _DENSEST * len(data):
            raise ValueError
        symbols = [coder.decode(_table(decay, spread), each) - spread + int(center) for center, decay in channels]
    except (AssertionError, ValueError) as error:
        raise DataError(f"data must be a code of this model, got {len(data)} bytes of something else") from error
    codes = (torch.from_numpy(np.stack(symbols)).float() * step).view(count, -1, *shape)
    tiles = decode_codes(codes.transpose(0, 1), network).reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return tiles.reshape(rows * side, columns * side, 3)[:height, :width]


def _count_tiles(height: int, width: int, side: int) -> tuple[int, int]:
    """Return how many squares cover an image, in rows and columns; refuse one that is empty or fills the memory."""
    rows, columns = -(-height // side), -(-width // side)
    if not 0 < rows * columns * side**2 <= MAX_PIXELS:
        seen = f"{height} x {width} in squares of {side}"
        raise DataError(f"image must have 1 to {MAX_PIXELS} pixels in whole squares, got {seen}")
    return rows, columns


def _table(decay: int, spread: int) -> Any:
    """Probabilities proportional to decay ** abs(k), by multiplications alone: the same on every machine."""
    tail = np.cumprod(np.full(spread, int(decay) / 256))
    return constriction.stream.model.Categorical(np.concatenate([tail[::-1], [1.0], tail]), perfect=False)
