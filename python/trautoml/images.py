"""Images: arrays of any usual kind brought to one uint8 shape.

One background holds everywhere, here and for files: what is transparent is laid on white.
"""

import numpy as np
import numpy.typing as npt

from trautoml.errors import TaskError

Images = npt.NDArray[np.uint8]

MIN_SIDE, MAX_SIDE = 8, 224
"""Shortest and longest side of an image that a task may have, in pixels."""


def as_images(array: npt.ArrayLike, split: str) -> Images:
    """Bring an array of images to uint8 of shape (N, H, W, C) with C 1 or 3.

    - Values: uint8 as they are; bool as 0 and 255; uint16 divided by 257 and rounded; floats in
      [0, 1] times 255 and rounded.
    - Axes: (N, H, W); (N, H, W, C) with C = 1, 3 or 4; (N, C, H, W) where the second axis is 1, 3
      or 4 and the last is none of these.
    - A fourth channel is opacity: the image is laid on white.

    Parameters
    ----------
    array : array_like
        The images.
    split : str
        Name of the split, for messages.

    Returns
    -------
    ndarray of uint8, shape (N, H, W, C)
        May share memory with `array`.

    Raises
    ------
    TaskError
        For another type or shape, floats outside [0, 1] or not finite, no images, or a side
        outside 8..224.
    """
    images = _as_nhwc(_as_uint8(np.asarray(array), split), split)
    if len(images) == 0:
        raise TaskError(f"the {split} split has no images; expected at least one")
    height, width = images.shape[1:3]
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise TaskError(
            f"{split} images are {height} x {width} pixels; expected {MIN_SIDE} to {MAX_SIDE} "
            "a side; resize them first"
        )
    return _on_white(images) if images.shape[3] == 4 else images


def _as_uint8(array: npt.NDArray[np.generic], split: str) -> Images:
    if array.dtype == np.uint8:
        return array.view(np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return from_16_bits(array)
    if array.dtype.kind == "f":
        try:
            return from_unit_floats(array)
        except ValueError as error:
            raise TaskError(
                f"{split} images: floats must be finite and in [0, 1], {error}; "
                "rescale them or give uint8 in 0..255"
            ) from error
    raise TaskError(
        f"{split} images: dtype {array.dtype}; expected uint8, bool, uint16 or floats in [0, 1]; "
        "values in 0..255 can be given as images.astype(numpy.uint8)"
    )


def from_16_bits(array: npt.NDArray[np.generic]) -> Images:
    """Bring values in 0..65535 to 0..255, rounded."""
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def from_unit_floats(array: npt.NDArray[np.generic]) -> Images:
    """Bring values in [0, 1] to 0..255, rounded.

    Raises
    ------
    ValueError
        If there are others.
    """
    values = array.astype(np.result_type(array, np.float32))
    if not np.isfinite(values).all():
        raise ValueError("got NaN or infinity")
    low, high = values.min(initial=0), values.max(initial=1)
    if low < 0 or high > 1:
        raise ValueError(f"got {low:g} to {high:g}")
    scaled: Images = np.rint(values * 255).astype(np.uint8)
    return scaled


def _as_nhwc(array: Images, split: str) -> Images:
    channels = (1, 3, 4)
    if array.ndim == 3:
        return array[..., np.newaxis]
    if array.ndim == 4 and array.shape[3] in channels:
        return array
    if array.ndim == 4 and array.shape[1] in channels:
        return array.transpose(0, 2, 3, 1)
    raise TaskError(
        f"{split} images: shape {array.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W) "
        "with C = 1, 3 or 4 channels"
    )


def _on_white(images: Images) -> Images:
    """Lay (N, H, W, 4) on white, rounded; 16 bits hold every intermediate value."""
    opacity = images[..., 3:].astype(np.uint16)
    mixed = images[..., :3] * opacity + np.uint16(255) * (np.uint16(255) - opacity)
    return ((mixed + np.uint16(127)) // np.uint16(255)).astype(np.uint8)
