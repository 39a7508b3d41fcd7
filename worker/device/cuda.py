"""A CUDA device through CuPy: two streams of its own, page-locked host memory, and the kernels.

Invariants: memory of `zeros` is allocated on the stream of `work` and touched by that and `copies` alone, so CuPy's
pool cannot hand it out while either is at it; nothing runs on a stream of the caller's; both streams are non-blocking,
so they run beside the caller's whatever that is. Every call names its device: it may come from any thread. Must not
know: servers, steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from paramserver.wire.codecs import Codec
from worker.arrays import array_of, on_cuda
from worker.device import kernels
from worker.device.backend import Array, HostArray, Stream
from worker.device.guard import guarded
from worker.errors import InvalidArgument

_ENCODE = {Codec.BF16: "encode_bf16", Codec.FP16: "encode_fp16"}
_DECODE = {Codec.BF16: "decode_bf16", Codec.FP16: "decode_fp16"}


class Cuda:
    def __init__(self, cupy: Any, number: int) -> None:
        """`cupy`: the module. `number` of the device."""
        import cupyx

        self._cupy = cupy
        self._empty_pinned = cupyx.empty_pinned
        self._device = cupy.cuda.Device(number)
        with self._doing("preparing the device"):
            self.work = cupy.cuda.Stream(non_blocking=True)
            self.copies = cupy.cuda.Stream(non_blocking=True)
            # Compiled when first called; the device's own cache on disk spares it the next process.
            module = cupy.RawModule(code=kernels.SOURCE)
            self._kernels = {name: module.get_function(name) for name in kernels.NAMES}

    # --- memory

    def zeros(self, elements: int, dtype: Any) -> Array:
        with self._doing(f"memory for {elements} elements"), self.work:
            return self._cupy.zeros(elements, dtype)

    def pinned(self, elements: int, dtype: Any) -> HostArray:
        with self._doing(f"page-locked memory for {elements} elements"):
            array: HostArray = self._empty_pinned(elements, dtype)
        array.fill(0)
        # CuPy's pool hands page-locked memory out again the moment it is let go: no copy may be at it then.
        weakref.finalize(array, _drain, self._device, self.work, self.copies).atexit = False
        return array

    def constant(self, values: npt.NDArray[Any]) -> Array:
        """A copy on the device, for later work."""
        with self._doing("tables"), self.work:
            return self._cupy.asarray(values)

    def group(self, places: Sequence[slice]) -> CudaGroup:
        return CudaGroup(self, places)

    def adopt(self, name: str, value: Any) -> Array:
        cupy = self._cupy
        with self._doing(f"taking tensor {name!r}"):
            if not isinstance(value, cupy.ndarray):
                # With DLPack it is the same memory, and its library's stream is waited for by the current one.
                value = cupy.from_dlpack(value) if on_cuda(value) else cupy.asarray(array_of(name, value))
            if value.device.id != self._device.id:
                raise InvalidArgument(
                    f"tensor {name!r}: expected an array on device {self._device.id}, received one on "
                    f"device {value.device.id}"
                )
            return cupy.ascontiguousarray(value).reshape(value.shape)  # which makes a vector of a scalar

    def element(self, array: Array, place: int) -> np.float32:
        with self._doing("reading an element"), self.work:
            value: np.float32 = array[place : place + 1].get(stream=self.work)[0]
            return value

    # --- who waits for whom

    def caller(self) -> Stream:
        with self._device:
            return self._cupy.cuda.get_current_stream()

    def after(self, stream: Stream) -> None:
        with self._doing("waiting for a stream"):
            self._order(stream, self.work)

    def before(self, stream: Stream) -> None:
        with self._doing("having a stream wait"):
            self._order(self.work, stream)

    def wait(self) -> None:
        with self._doing("waiting for copies and kernels"):
            for stream in (self.work, self.copies):
                self.mark(stream).synchronize()

    def _order(self, first: Stream, then: Stream) -> None:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(first)
        then.wait_event(event)  # an event that is let go lives on until it happened

    def mark(self, stream: Stream) -> Any:
        """An event whose `synchronize` leaves the processor to others."""
        event = self._cupy.cuda.Event(block=True, disable_timing=True)
        event.record(stream)
        return event

    # --- work

    def set_bits(self, array: Array) -> None:
        with self._doing("clearing"):
            array.data.memset_async(0xFF, array.nbytes, self.work)

    def encode(self, codec: Codec, flat: Array, shorts: Array, start: int, stop: int) -> None:
        self._code(_ENCODE[codec], flat, shorts, start, stop)

    def decode(self, codec: Codec, shorts: Array, flat: Array, start: int, stop: int) -> None:
        self._code(_DECODE[codec], shorts, flat, start, stop)

    def _code(self, name: str, source: Array, target: Array, start: int, stop: int) -> None:
        arguments = (source, target, np.uint64(start), np.uint64(stop))
        self.launch(name, kernels.blocks(start, stop), arguments)

    def launch(self, name: str, blocks: int, arguments: tuple[Any, ...]) -> None:
        if blocks:
            with self._doing(name), self.work:
                self._kernels[name]((blocks,), (kernels.THREADS,), arguments)

    # --- copies

    def download(self, array: Array, host: HostArray, start: int, stop: int) -> None:
        if start == stop:
            return
        with self._doing("copying to the host"):
            self._order(self.work, self.copies)
            array[start:stop].get(stream=self.copies, out=host[start:stop], blocking=False)

    def upload(self, host: HostArray, array: Array, start: int, stop: int) -> None:
        if start == stop:
            return
        with self._doing("copying to the device"):
            self._order(self.work, self.copies)
            array[start:stop].set(host[start:stop], stream=self.copies)
            self._order(self.copies, self.work)

    def table(self, host: HostArray, array: Array) -> Any:
        """Like `upload`, as work: small and needed at once. The event after which `host` may be written again."""
        with self._doing("copying a table"):
            array.set(host, stream=self.work)
            return self.mark(self.work)

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        with guarded(what), self._device:
            yield


def _drain(device: Any, *streams: Stream) -> None:
    try:
        with device:
            for stream in streams:
                stream.synchronize()
    except Exception:  # an error of the device is told to whoever asks it for something
        pass


class CudaGroup:
    """Invariant: the table of addresses is written when the last one was read by the device."""

    def __init__(self, cuda: Cuda, places: Sequence[slice]) -> None:
        self._cuda = cuda
        offsets = np.array([place.start for place in places], np.uint64)
        sizes = np.array([place.stop - place.start for place in places], np.uint64)
        of, start = kernels.pieces([int(size) for size in sizes])
        self._pieces = len(of)
        self._fixed = tuple(cuda.constant(values) for values in (offsets, sizes, of, start))
        self._host = cuda.pinned(len(sizes), np.uint64), cuda.pinned(len(sizes), np.int32)
        self._table = cuda.zeros(len(sizes), np.uint64), cuda.zeros(len(sizes), np.int32)
        self._read: list[Any] = []

    def gather(self, arrays: Sequence[Array], flat: Array, factor: float, limit: int, first: Array) -> None:
        arguments = (flat, np.float32(factor), np.uint32(limit), first)
        self._cuda.launch("gather", self._pieces, (*self._tables(arrays), *self._fixed, *arguments))

    def scatter(self, flat: Array, arrays: Sequence[Array]) -> None:
        self._cuda.launch("scatter", self._pieces, (*self._tables(arrays), *self._fixed, flat))

    def _tables(self, arrays: Sequence[Array]) -> tuple[Array, Array]:
        count = len(arrays)
        addresses = np.fromiter((array.data.ptr for array in arrays), np.uint64, count)
        kinds = np.fromiter((kernels.KINDS[array.dtype] for array in arrays), np.int32, count)
        # Pools give the same addresses again, step after step.
        at, of = self._host
        if not self._read or not (np.array_equal(at, addresses) and np.array_equal(of, kinds)):
            for event in self._read:
                event.synchronize()
            at[:], of[:] = addresses, kinds
            self._read = [self._cuda.table(host, array) for host, array in zip(self._host, self._table, strict=True)]
        return self._table
