"""Image files: images of any sizes and modes, read and brought to one uint8 shape."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from trautoml.errors import TaskError
from trautoml.images import MAX_SIDE, MIN_SIDE, Images, from_16_bits, from_unit_floats

ImageSize = int | tuple[int, int]
Item = TypeVar("Item")
Result = TypeVar("Result")

DEFAULT_SIDE = 64
"""Longest side, in pixels, that images of files get where no size is asked for."""

FORMATS = {
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""The formats that are read (Pillow's names) and how their files' names end."""

EXTENSIONS = frozenset(extension for endings in FORMATS.values() for extension in endings)

_GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = {5, 6, 7, 8}


class SkippedImageWarning(UserWarning):
    """Some images could not be read and are not part of the task."""


def check_image_size(image_size: ImageSize | None) -> tuple[int, int] | None:
    """Bring a wanted image size to (height, width).

    Parameters
    ----------
    image_size : int or (int, int), optional
        One side of a square, or height and width, in pixels.

    Returns
    -------
    (int, int) or None

    Raises
    ------
    TaskError
        If it is not one or two whole numbers from 8 to 224.
    """
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if len(sides) != 2 or not all(
        isinstance(side, int) and MIN_SIDE <= side <= MAX_SIDE for side in sides
    ):
        raise TaskError(
            f"image_size {image_size!r}: expected a whole number of pixels or (height, width), "
            f"each from {MIN_SIDE} to {MAX_SIDE}"
        )
    return sides[0], sides[1]


def open_file(path: Path) -> Image.Image:
    """Open an image file without reading its pixels.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    OSError
        If it is no regular file or in none of the formats in `FORMATS`.
    """
    if not path.is_file():
        raise OSError("not a regular file")
    return Image.open(path, formats=tuple(FORMATS))


def read_images(
    items: Sequence[Item],
    open_image: Callable[[Item], Image.Image],
    image_size: ImageSize | None = None,
    max_side: int = DEFAULT_SIDE,
) -> tuple[Images, list[int]]:
    """Read images of any sizes and modes and bring them to one shape.

    Every image is opened twice, first for its size and mode and then for its pixels, so that no
    original is held.

    - Channels: 3 if any image that could be read has a pixel with colour, else 1.
    - Pixels: palettes are expanded; transparent parts are laid on white; 16 bits are divided by
      257 and rounded; floats in [0, 1] are times 255 and rounded; the EXIF orientation is
      applied; of several frames the first is taken.
    - Size: `image_size`, or else the median height and the median width, both scaled down until
      the longer is at most `max_side`, and never below 8. Small sides save time; `image_size` and
      `max_side` may be up to 224.
    - Each image is scaled (bilinear, antialiased) to cover that size, keeping its aspect, and its
      centre is kept.

    Parameters
    ----------
    items : sequence
        What to read, for example paths; named by ``str(item)`` if it can't be read.
    open_image : callable
        Opens one item. It may raise anything.
    image_size : int or (int, int), optional
        Side, or height and width, wanted.
    max_side : int
        Longest side, where none is wanted. Default 64.

    Returns
    -------
    images : ndarray of uint8, shape (M, H, W, C)
        The images that could be read, in order.
    kept : list of int, length M
        Their positions in `items`.

    Raises
    ------
    TaskError
        If `image_size` or `max_side` is not valid, or no image could be read.

    Warns
    -----
    SkippedImageWarning
        Once, if there are images that could not be read.
    """
    wanted = check_image_size(image_size)
    check_image_size(max_side)
    skipped: dict[int, str] = {}
    heads: dict[int, _Head] = {}
    kept: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for index, item in enumerate(items):
            head = _attempt(partial(_head, open_image, item), index, skipped)
            if head is not None:
                heads[index] = head
        size = wanted or _median_size(list(heads.values()), max_side)
        channels = 3 if any(head.may_have_colour for head in heads.values()) else 1
        images = np.empty((len(heads), *size, channels), np.uint8)
        for index in heads:
            render = partial(_render, open_image, items[index], size, channels)
            pixels = _attempt(render, index, skipped)
            if pixels is not None:
                images[len(kept)] = pixels
                kept.append(index)
    if skipped:
        _warn_skipped(items, skipped)
    if not kept:
        raise TaskError(f"no images: none of the {len(items)} found could be read")
    return _without_idle_channels(images[: len(kept)]), kept


class _Head(NamedTuple):
    height: int
    width: int
    may_have_colour: bool


def _attempt(action: Callable[[], Result], index: int, skipped: dict[int, str]) -> Result | None:
    """Return what `action` returns, or note why it failed and return None."""
    try:
        return action()
    except Exception as error:  # a decoder that meets a broken file may raise anything
        skipped[index] = " ".join(str(error).split()) or type(error).__name__
        return None


def _head(open_image: Callable[[Item], Image.Image], item: Item) -> _Head:
    with open_image(item) as image:
        width, height = image.size
        if _orientation(image) in _TURNED:
            width, height = height, width
        grey = image.mode in _GREY_MODES or image.mode.startswith("I;")
        return _Head(height, width, not grey)


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation; what can't be parsed says nothing about the pixels."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:
        return None
    return value if isinstance(value, int) else None


def _median_size(heads: Sequence[_Head], max_side: int) -> tuple[int, int]:
    if not heads:
        return MIN_SIDE, MIN_SIDE
    height = float(np.median([head.height for head in heads]))
    width = float(np.median([head.width for head in heads]))
    scale = min(1.0, max_side / max(height, width))
    return max(MIN_SIDE, round(height * scale)), max(MIN_SIDE, round(width * scale))


def _render(
    open_image: Callable[[Item], Image.Image], item: Item, size: tuple[int, int], channels: int
) -> Images:
    """Return the pixels of one image, (height, width, channels)."""
    with open_image(item) as image:
        # A JPEG can be decoded at a half, a quarter or an eighth: never below twice what is kept.
        image.draft(None, (2 * max(size), 2 * max(size)))
        turn = _ORIENTATIONS.get(_orientation(image) or 1)
        upright = image if turn is None else image.transpose(turn)
        eight_bit = _on_white_8_bit(upright)
    eight_bit = eight_bit.convert("L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(eight_bit, (size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(*size, channels)


def _on_white_8_bit(image: Image.Image) -> Image.Image:
    """Bring any mode to L or RGB."""
    if image.mode == "F":
        return Image.fromarray(from_unit_floats(np.asarray(image)))
    if image.mode == "I" or image.mode.startswith("I;"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit values outside 0..65535")
        return Image.fromarray(from_16_bits(values))
    if "transparency" in image.info or image.getbands()[-1] in {"A", "a"}:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")


def _without_idle_channels(images: Images) -> Images:
    """Keep one channel of images that are grey in every pixel."""
    if images.shape[3] == 3 and not any(
        (image[..., :1] != image[..., 1:]).any() for image in images
    ):
        return np.ascontiguousarray(images[..., :1])
    return images


def _warn_skipped(items: Sequence[object], skipped: dict[int, str]) -> None:
    named = [f"{items[index]} ({skipped[index]})" for index in sorted(skipped)[:10]]
    rest = f" and {len(skipped) - 10} more" if len(skipped) > 10 else ""
    warnings.warn(
        f"{len(skipped)} of {len(items)} images could not be read and were skipped: "
        f"{', '.join(named)}{rest}",
        SkippedImageWarning,
        stacklevel=3,
    )
