"""What a model takes: size, number of channels, range of values, and how images of other sizes are fitted to it.

An integer in place of an `ImageFormat` is the side of a square of 8-bit RGB.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from segae._io import check_range, require_choice
from segae.errors import DataError

Size = int | tuple[int, int]
Ranges = tuple[tuple[float, float], ...]
Slices = tuple[slice, slice]

GRAY = (0.299, 0.587, 0.114)  # shares of red, green and blue in the brightness, Rec. 601
IGNORE_INDEX = 255  # of a pixel that counts neither in training nor in a score
RESIZES = ("squash", "letterbox", "crop")
_CV2_CHANNELS = 4  # that cv2 averages over areas at once


@dataclass(frozen=True)
class ImageFormat:
    """The images that a model takes.

    Attributes:
        size: side in pixels of a square, or height and width.
        channels: 1 to 16. One 8-bit channel is kept as RGB, and made gray when it is normalized.
        value_range: for each channel the values that become black, 0, and white, 65535; integers are taken as shares
            of their type's largest value, floats as they are. Empty for 8-bit images, which are kept as they are.
        resize: ``squash`` changes the aspect ratio, ``letterbox`` keeps it and pads, ``crop`` cuts out the middle;
            ``cover`` stops before that, so that random crops can be cut from the whole.
    """

    size: Size
    channels: int = 3
    value_range: Ranges = ()
    resize: str = "squash"

    def __post_init__(self) -> None:
        for side in self.shape:
            check_range("image_size", side, low=1, high=1 << 16, integer=True)
        check_range("in_channels", self.channels, low=1, high=1024, integer=True)
        require_choice("resize", self.resize, (*RESIZES, "cover"))
        if len(self.value_range) not in (0, self.channels):
            raise DataError(f"value_range must have {self.channels} pairs or none, got {self.value_range}")
        for low, high in self.value_range:
            check_range("value_range", high, low=low, low_open=True)

    @classmethod
    def of(cls, size: "Size | Self", channels: int = 3) -> "ImageFormat | Self":
        """Return a format as it is, or that of 8-bit images of a size."""
        return size if isinstance(size, ImageFormat) else cls(size, channels)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else (int(self.size[0]), int(self.size[1]))

    @property
    def is_rgb(self) -> bool:
        """Whether arrays are 8-bit RGB: what `read_image` gives."""
        return not self.value_range and self.channels in (1, 3)

    @property
    def stored_channels(self) -> int:
        """Channels of arrays of this format."""
        return 3 if self.is_rgb else self.channels

    @property
    def dtype(self) -> Any:
        """Type of arrays of this format: uint8 or, with a range of values, uint16."""
        return np.uint16 if self.value_range else np.uint8

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes that a pixel of such arrays takes."""
        return self.stored_channels * np.dtype(self.dtype).itemsize

    def resized(self, size: Size) -> Self:
        """Return this format with another size."""
        return replace(self, size=size)

    def convert(self, image: NDArray[Any], name: object = "image") -> NDArray[np.unsignedinteger]:
        """Make an array (H, W, C) of numbers one of this format, of its own size.

        Gray does for RGB, and RGB for gray. DataError, with the image's ``name``, if it has other channels, or values
        that are not finite.
        """
        found, needed = image.shape[2], self.stored_channels
        self.require_channels(found, name)
        if not np.isfinite(image).all():
            raise DataError(f"{name} holds NaN or infinite values. Replace or remove the file.")
        if not self.value_range:
            values: NDArray[Any] = image if image.dtype == np.uint8 else to_8_bit(image)
        else:
            values = image.astype(np.float32) * np.float32(unit_scale(image.dtype))
        if found == 3 and needed == 1:
            values = (values @ np.array(GRAY, np.float32))[..., None]
        if self.value_range:
            low, high = np.array(self.value_range, np.float32).T
            values = np.clip((values - low) * (65535 / (high - low)), 0, 65535)
        elif found == 1 and needed == 3:
            values = values.repeat(3, axis=2)
        return np.ascontiguousarray(values if values.dtype == self.dtype else values.round().astype(self.dtype))

    def require_channels(self, found: int, name: object = "image") -> None:
        """Raise DataError unless images of ``found`` channels do for this format; gray and RGB do for each other."""
        if found != self.stored_channels and {found, self.stored_channels} != {1, 3}:
            raise DataError(f"{name} has {found} channels, and the model takes {self.channels}: give images of as many")

    def boxes(self, height: int, width: int) -> tuple[Slices, Slices]:
        """Return which rows and columns of an image of that size are shown, and where in the model's input."""
        rows, columns = self.shape
        if self.resize == "cover":
            scale = max(rows / height, columns / width)
            rows, columns = max(round(height * scale), rows), max(round(width * scale), columns)
        seen, place = (height, width), (rows, columns)
        if self.resize == "crop":
            seen = _largest_inside(height, width, rows, columns)
        elif self.resize == "letterbox":
            place = _largest_inside(rows, columns, height, width)
        return _middle(height, width, *seen), _middle(rows, columns, *place)


def unit_scale(kind: np.dtype) -> float:
    """What makes 8-bit and 16-bit values shares of the largest one; other numbers stay as they are."""
    return 1 / np.iinfo(kind).max if kind in (np.uint8, np.uint16) else 1.0


def to_8_bit(values: NDArray[Any], *, wide: bool = False) -> NDArray[np.uint8]:
    """Scale wide values to 0..255: the range of 16 bits is known, that of 32 bits follows from the largest value.

    ``wide`` says that they are 16-bit values in a larger type. ValueError if they are not finite, or in no range.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its values run from {low:g} to {high:g}, not within 0..1, 0..255 or 0..65535")
    top = 1 if values.dtype.kind == "f" and high <= 1 else 255 if high <= 255 else 65535
    if values.dtype.itemsize == 2 or wide:
        top = 65535
    return np.round(values * (255.0 / top)).astype(np.uint8)


def resize_image(image: NDArray[Any], size: Size | ImageFormat) -> NDArray[Any]:
    """Resize an image (H, W, C) to a size: areas are averaged where it shrinks, bilinear where it grows.

    By a format that keeps the aspect ratio, black is added or parts are cut off.
    """
    form = ImageFormat.of(size)
    seen, place = form.boxes(*image.shape[:2])
    part = scale_image(image[seen], place[0].stop - place[0].start, place[1].stop - place[1].start)
    if form.resize != "letterbox":
        return part
    whole = np.zeros((*form.shape, part.shape[2]), part.dtype)
    whole[place] = part
    return whole


def scale_image(image: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """Resize an image (H, W, C) of any number of channels to (rows, columns, C)."""
    if image.shape[2] > _CV2_CHANNELS:
        parts = (image[..., start : start + _CV2_CHANNELS] for start in range(0, image.shape[2], _CV2_CHANNELS))
        return np.concatenate([scale_image(np.ascontiguousarray(part), rows, columns) for part in parts], axis=2)
    height, width = image.shape[:2]
    if height > rows or width > columns:
        # cv2 averages areas only if no side grows, so a long narrow image takes two steps
        image = cv2.resize(image, (min(width, columns), min(height, rows)), interpolation=cv2.INTER_AREA)
    if image.shape[:2] != (rows, columns):
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return image.reshape(rows, columns, -1)  # cv2 leaves out the axis of a single channel


def resize_mask(mask: NDArray[np.uint8], size: Size | ImageFormat) -> NDArray[np.uint8]:
    """Resize a mask, uint8 (H, W), as `resize_image` does; each pixel takes the class at its center.

    So no new value appears but 255, ignored, where an image is padded.
    """
    form = ImageFormat.of(size)
    seen, place = form.boxes(*mask.shape)
    shape = (place[1].stop - place[1].start, place[0].stop - place[0].start)
    # plain INTER_NEAREST takes the upper left corner of each cell, up to half a pixel beside the image's
    part = cv2.resize(mask[seen], shape, interpolation=cv2.INTER_NEAREST_EXACT)
    if form.resize != "letterbox":
        return part
    whole = np.full(form.shape, IGNORE_INDEX, mask.dtype)
    whole[place] = part
    return whole


def to_picture(image: NDArray[np.unsignedinteger]) -> NDArray[np.uint8]:
    """Make an array of a format (H, W, C) a picture to look at, uint8 (H, W, 3): the first three channels."""
    pixels = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    return pixels if pixels.shape[2] == 3 else pixels[..., [0, 1 % pixels.shape[2], min(2, pixels.shape[2] - 1)]]


def _largest_inside(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Height and width of the largest rectangle with the aspect ratio rows : columns inside height x width."""
    scale = min(height / rows, width / columns)
    return max(round(rows * scale), 1), max(round(columns * scale), 1)


def _middle(height: int, width: int, rows: int, columns: int) -> Slices:
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)
