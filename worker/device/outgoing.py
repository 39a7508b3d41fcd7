"""A gradient on its way from a device to host memory, a bucket at a time, while the rest of it is still computed.

    put, put, ... -> a bucket is whole -> gather -> encode -> copy          take: wait for the copies, and the judgement

A bucket is a run of whole tensors, as they lie in the model's flat space. Invariants (fault 32): `take` gives all of a
gradient or raises, so no byte of a step is sent before all of them are in host memory; a bucket's memory is written
again only when its last copy is over; arrays are kept alive until they were read. Must not know: servers, CuPy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from paramserver.wire.codecs import Codec, Encoded, Values
from paramserver.wire.layout import FLOAT, Layout
from worker.device.backend import Array, Backend, Group, Stream
from worker.device.kernels import KINDS, LIMITS, NOTHING
from worker.errors import DeviceFailed, InvalidArgument
from worker.intake import Staged

BUCKET_BYTES = 4 << 20
"""Of float32. Large enough that a copy is as fast as one of all, small enough that the last bucket is a small part."""

_SHORT, _PLACE = np.dtype("<u2"), np.dtype("<u8")


class _Bucket:
    """Tensors `first` to `last` - 1 of the model, at `start` to `stop` - 1 of its flat space; those of `positions` are
    trained."""

    def __init__(self, start: int, stop: int, positions: tuple[int, ...]) -> None:
        self.start = start
        self.stop = stop
        self.positions = positions
        self.missing = len(positions)
        self.group: Group | None = None


class Outgoing:
    """Of one handle and device; one thread at a time. `take` must not be called while what it gave before is being
    sent."""

    def __init__(
        self,
        layout: Layout,
        codec: Codec,
        backend: Backend,
        frozen: Collection[str] = (),
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """`frozen`: tensors of which nothing comes; there are zeros in their place."""
        tensors = layout.spec.tensors
        self._layout = layout
        self._codec = codec
        self._backend = backend
        self._shapes = [tensor.shape for tensor in tensors]
        self._positions = {tensor.name: at for at, tensor in enumerate(tensors) if tensor.name not in frozen}
        self._known = {tensor.name for tensor in tensors}
        self._places = [layout.tensor_slice(position) for position in range(len(tensors))]
        self._buckets = self._cut(bucket_bytes // FLOAT.itemsize)
        self._bucket_of = {position: bucket for bucket in self._buckets for position in bucket.positions}
        self._whole: Group | None = None
        self._flat = backend.zeros(layout.elements, FLOAT)
        self._first, self._first_host = backend.zeros(1, _PLACE), backend.pinned(1, _PLACE)
        plain = codec is Codec.FP32
        self._encoded = self._flat if plain else backend.zeros(layout.elements, _SHORT)
        self._host = backend.pinned(layout.elements, FLOAT if plain else _SHORT)
        self._values: Values = self._host if plain else Encoded(codec, self._host)
        self._arrays: dict[int, Array] = {}
        """What was put, by position; empty between steps."""
        self._stream: Stream = None
        """On which what is not gathered yet was made."""
        self.factor = 1.0
        """What is put is multiplied by this, in float32: 1 / scale of a loss that was scaled up."""

    def _cut(self, elements: int) -> list[_Bucket]:
        buckets, first = [], 0
        for position in range(len(self._places)):
            start, stop = self._places[first].start, self._places[position].stop
            if stop - start >= elements or position + 1 == len(self._places):
                trained = set(self._positions.values())
                positions = tuple(one for one in range(first, position + 1) if one in trained)
                if positions:
                    buckets.append(_Bucket(start, stop, positions))
                first = position + 1
        return buckets

    @property
    def begun(self) -> bool:
        """Something was put."""
        return bool(self._arrays)

    # --- in

    def put(self, name: str, gradient: Any) -> None:
        """One tensor's gradient, any kind of float that kernels know, when what makes it was given to the calling
        thread's stream. Its memory must not be written again until `take`. Raises InvalidArgument, DeviceFailed; then
        `discard` is what is left."""
        position = self._position(name)
        array = self._array(position, name, gradient)
        stream = self._backend.caller()
        if not self._arrays:
            self._begin(stream)
        elif stream != self._stream:
            self._backend.after(self._stream)
            self._stream = stream
        self._arrays[position] = array
        bucket = self._bucket_of[position]
        bucket.missing -= 1
        if not bucket.missing:
            self._backend.after(stream)
            if bucket.group is None:
                bucket.group = self._backend.group([self._places[one] for one in bucket.positions])
            self._gather(bucket.group, bucket.positions)
            self._send(bucket)

    def put_all(self, gradients: Mapping[str, Any]) -> None:
        """All tensors, gathered by one kernel. Raises as `put`."""
        if self._arrays:
            raise InvalidArgument("gradients of all tensors, and some that were put before", "pass them one way")
        if not isinstance(gradients, Mapping):
            raise InvalidArgument(f"gradients: {type(gradients).__name__}", "expected a mapping of names to arrays")
        arrays: dict[int, Array] = {}
        problems: list[str] = []
        for name, gradient in gradients.items():
            try:
                position = self._position(name)
                arrays[position] = self._array(position, name, gradient)
            except InvalidArgument as error:
                problems.append(str(error))
        problems += [line for name, line in self._missing(arrays) if name not in gradients]
        _refuse(problems)
        ordered = tuple(self._positions.values())
        stream = self._backend.caller()
        self._begin(stream)
        self._arrays = arrays
        self._backend.after(stream)
        if self._whole is None:
            self._whole = self._backend.group([self._places[one] for one in ordered])
        self._gather(self._whole, ordered)
        for bucket in self._buckets:
            bucket.missing = 0
            self._send(bucket)

    def _begin(self, stream: Stream) -> None:
        self._stream = stream
        self._backend.set_bits(self._first)

    def _gather(self, group: Group, positions: tuple[int, ...]) -> None:
        arrays = [self._arrays[one] for one in positions]
        group.gather(arrays, self._flat, self.factor, LIMITS[self._codec], self._first)

    def _send(self, bucket: _Bucket) -> None:
        if self._encoded is not self._flat:
            self._backend.encode(self._codec, self._flat, self._encoded, bucket.start, bucket.stop)
        self._backend.download(self._encoded, self._host, bucket.start, bucket.stop)

    # --- out

    def take(self) -> Staged:
        """All that was put, in host memory; it must have been every tensor. The next `put` begins anew. It waits for
        all that the backend was given. Raises InvalidArgument (what is missing, by name; it may still be put),
        DeviceFailed; then `discard` is what is left."""
        _refuse([line for _, line in self._missing(self._arrays)])
        self._backend.download(self._first, self._first_host, 0, 1)
        self._backend.wait()
        first = int(self._first_host[0])
        beyond = None if first == NOTHING else (first, self._backend.element(self._flat, first))
        self._forget()
        return Staged(self._values, beyond)

    def discard(self) -> None:
        """Forget what was put. Raises DeviceFailed."""
        try:
            self._backend.wait()  # kernels may still read what was put
        finally:
            self._forget()

    def close(self) -> None:
        """`discard`, whatever the device says to it."""
        try:
            self.discard()
        except DeviceFailed:
            pass

    def _forget(self) -> None:
        self._arrays = {}
        for bucket in self._buckets:
            bucket.missing = len(bucket.positions)

    # --- checks

    def _position(self, name: str) -> int:
        position = self._positions.get(name)
        if position is None:
            if name in self._known:
                raise InvalidArgument(f"tensor {name!r}: expected nothing, for it is frozen, received an array")
            raise InvalidArgument(f"tensor {name!r}: expected one of the model, received an unknown one")
        if position in self._arrays:
            raise InvalidArgument(f"tensor {name!r}: expected once a step, received again")
        return position

    def _array(self, position: int, name: str, gradient: Any) -> Array:
        array = self._backend.adopt(name, gradient)
        shape = self._shapes[position]
        if array.shape != shape:
            raise InvalidArgument(f"tensor {name!r}: expected shape {shape}, received shape {array.shape}")
        if array.dtype not in KINDS:
            raise InvalidArgument(f"tensor {name!r}: expected float16, float32 or float64, received {array.dtype}")
        return array

    def _missing(self, positions: Collection[int]) -> list[tuple[str, str]]:
        """Tensors that are not among them, each with what to say of it."""
        if len(positions) == len(self._positions):
            return []
        return [
            (name, f"tensor {name!r}: expected shape {self._shapes[at]}, received nothing")
            for name, at in self._positions.items()
            if at not in positions
        ]


PROBLEMS_MAX = 20
"""Named in one error."""


def _refuse(problems: list[str]) -> None:
    if problems:
        more = f"; and {len(problems) - PROBLEMS_MAX} more" if len(problems) > PROBLEMS_MAX else ""
        raise InvalidArgument("; ".join(problems[:PROBLEMS_MAX]) + more)
