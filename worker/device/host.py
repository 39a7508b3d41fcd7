"""The trivial device: NumPy. All is done when a call returns.

Must not know: servers, steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paramserver.wire import codecs
from paramserver.wire.codecs import Codec
from worker.arrays import array_of
from worker.device.backend import HostArray


class HostGroup:
    def __init__(self, places: Sequence[slice]) -> None:
        self._places = tuple(places)

    def gather(self, arrays: Sequence[HostArray], flat: HostArray, factor: float, limit: int, first: HostArray) -> None:
        with np.errstate(all="ignore"):
            for place, array in zip(self._places, arrays, strict=True):
                part = flat[place]
                part[:] = array.reshape(-1)
                if factor != 1:
                    np.multiply(part, np.float32(factor), out=part)
                beyond = (part.view(np.uint32) & np.uint32(0x7FFFFFFF)) >= limit
                if beyond.any():
                    first[0] = min(int(first[0]), place.start + int(beyond.argmax()))

    def scatter(self, flat: HostArray, arrays: Sequence[HostArray]) -> None:
        with np.errstate(all="ignore"):
            for place, array in zip(self._places, arrays, strict=True):
                array[...] = flat[place].reshape(array.shape)


class Host:
    def zeros(self, elements: int, dtype: Any) -> HostArray:
        return np.zeros(elements, dtype)

    def pinned(self, elements: int, dtype: Any) -> HostArray:
        return np.zeros(elements, dtype)

    def group(self, places: Sequence[slice]) -> HostGroup:
        return HostGroup(places)

    def adopt(self, name: str, value: Any) -> HostArray:
        array = array_of(name, value)
        return np.ascontiguousarray(array).reshape(array.shape)  # which makes a vector of a scalar

    def caller(self) -> None:
        return None

    def after(self, stream: None) -> None:
        pass

    def before(self, stream: None) -> None:
        pass

    def set_bits(self, array: HostArray) -> None:
        array.view(np.uint8).fill(0xFF)

    def encode(self, codec: Codec, flat: HostArray, shorts: HostArray, start: int, stop: int) -> None:
        codecs.encode(codec, flat[start:stop], shorts[start:stop].view(np.uint8))

    def decode(self, codec: Codec, shorts: HostArray, flat: HostArray, start: int, stop: int) -> None:
        codecs.floats(codecs.Encoded(codec, shorts[start:stop]), flat[start:stop])

    def download(self, array: HostArray, host: HostArray, start: int, stop: int) -> None:
        host[start:stop] = array[start:stop]

    def upload(self, host: HostArray, array: HostArray, start: int, stop: int) -> None:
        array[start:stop] = host[start:stop]

    def element(self, array: HostArray, place: int) -> np.float32:
        value: np.float32 = array[place]
        return value

    def wait(self) -> None:
        pass
