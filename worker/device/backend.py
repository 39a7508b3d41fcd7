"""What gradients and weights are moved with: the operations that a device gives to `outgoing` and `incoming`.

A device does two things at a time beside what its user has it do: `work` (kernels) and `copies`. Each is in order; one
waits for the other where a method below says so, and the host waits in `wait` alone. Invariant: whoever calls these in
some order gets, when `wait` returned, what plain NumPy would have made in that order. Must not know: servers, steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paramserver.wire.codecs import Codec

Array = Any
"""An array of the device."""
Stream = Any
"""What a caller's own kernels run on, in order."""
HostArray = npt.NDArray[Any]


class Group(Protocol):
    """Tensors that are copied at once, each with its place in a flat array."""

    def gather(self, arrays: Sequence[Array], flat: Array, factor: float, limit: int, first: Array) -> None:
        """Work: every array (contiguous, of float16, 32 or 64) to its place, as float32 times `factor`. `first` (1,)
        becomes the least place whose magnitude, as bits, is `limit` or more, where there is one below it. The arrays
        must live until `wait`."""

    def scatter(self, flat: Array, arrays: Sequence[Array]) -> None:
        """Work: the way back."""


class Backend(Protocol):
    """Every method may raise DeviceFailed or DeviceOutOfMemory."""

    def zeros(self, elements: int, dtype: Any) -> Array:
        """Memory of the device."""

    def pinned(self, elements: int, dtype: Any) -> HostArray:
        """Zeros in host memory that the device copies from and to by itself."""

    def group(self, places: Sequence[slice]) -> Group: ...

    def adopt(self, name: str, value: Any) -> Array:
        """Tensor `name` as a contiguous array of this device: `value` itself, where it is one. Raises
        InvalidArgument."""

    def caller(self) -> Stream:
        """That of the calling thread."""

    def after(self, stream: Stream) -> None:
        """Work goes on when all that `stream` was given up to now is done."""

    def before(self, stream: Stream) -> None:
        """`stream` goes on when the work given up to now is done."""

    def set_bits(self, array: Array) -> None:
        """Work: all of them, of every element."""

    def encode(self, codec: Codec, flat: Array, shorts: Array, start: int, stop: int) -> None:
        """Work: elements `start` to `stop` - 1, at the same place in both."""

    def decode(self, codec: Codec, shorts: Array, flat: Array, start: int, stop: int) -> None:
        """Work."""

    def download(self, array: Array, host: HostArray, start: int, stop: int) -> None:
        """Copies, after the work given up to now; `host` must be `pinned` and may be read after `wait`."""

    def upload(self, host: HostArray, array: Array, start: int, stop: int) -> None:
        """Copies, after the work given up to now; later work waits for it. `host` must be `pinned` and rest until
        `wait`."""

    def element(self, array: Array, place: int) -> np.float32:
        """One value, now."""

    def wait(self) -> None:
        """Until all work and copies given up to now are done."""
