"""Convolution and pooling, forward and backward, on NumPy or CuPy. Images are [n, height, width, channels].

A convolution is one matrix product over windows laid out as rows ("im2col"), and so is each half of its gradient: that
costs side * side times the memory of its input, and is as fast as the library's matrix product. Invariants: results
have the type of the operands and are a function of them; where windows overlap they are added in one order, so a GPU
needs no atomic addition. Must not know: networks, weights by name.
"""

from __future__ import annotations

from typing import Any

Array = Any
"""An array of the namespace in use."""


def windows(xp: Any, images: Array, side: int, margin: int) -> Array:
    """Every side x side window of images with `margin` rows and columns of zeros around them:
    [n * h' * w', side * side * c], h' = h + 2 * margin - side + 1."""
    count, height, width, channels = images.shape
    if margin:
        padded = xp.zeros((count, height + 2 * margin, width + 2 * margin, channels), dtype=images.dtype)
        padded[:, margin : margin + height, margin : margin + width] = images
    else:
        padded = xp.ascontiguousarray(images)
    down, across = height + 2 * margin - side + 1, width + 2 * margin - side + 1
    by_image, by_row, by_column, by_channel = padded.strides
    view = xp.lib.stride_tricks.as_strided(
        padded,
        shape=(count, down, across, side, side, channels),
        strides=(by_image, by_row, by_column, by_row, by_column, by_channel),
    )
    # Windows overlap in the view; the copy that reshape makes is what the matrix product reads.
    return view.reshape(count * down * across, side * side * channels)


def overlapped(xp: Any, rows: Array, shape: tuple[int, int, int, int], side: int, margin: int) -> Array:
    """The sum of windows at their places: the transpose of `windows`, to images of `shape`."""
    count, height, width, channels = shape
    down, across = height + 2 * margin - side + 1, width + 2 * margin - side + 1
    parts = rows.reshape(count, down, across, side, side, channels)
    padded = xp.zeros((count, height + 2 * margin, width + 2 * margin, channels), dtype=rows.dtype)
    for top in range(side):
        for left in range(side):
            padded[:, top : top + down, left : left + across] += parts[:, :, :, top, left]
    return padded[:, margin : margin + height, margin : margin + width]


def _quarters(images: Array) -> list[tuple[slice, slice, slice]]:
    """The four places of 2 x 2 pools; an odd last row or column is in none."""
    height, width = images.shape[1] // 2 * 2, images.shape[2] // 2 * 2
    return [(slice(None), slice(top, height, 2), slice(left, width, 2)) for top in (0, 1) for left in (0, 1)]


def pooled(xp: Any, images: Array) -> Array:
    """The largest of each 2 x 2 pool: [n, h // 2, w // 2, c]."""
    first, second, third, fourth = (images[place] for place in _quarters(images))
    return xp.maximum(xp.maximum(first, second), xp.maximum(third, fourth))


def unpooled(xp: Any, upstream: Array, images: Array, largest: Array) -> Array:
    """The gradient by images, given that by pools and `largest` = pooled(images): all of it goes to the largest, to the
    first of equals."""
    result = xp.zeros(images.shape, dtype=images.dtype)
    free = xp.ones(upstream.shape, dtype=bool)
    for place in _quarters(images):
        hit = (images[place] == largest) & free
        result[place] = upstream * hit
        free &= ~hit
    return result
