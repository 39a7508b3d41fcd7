"""How fast a device gathers, encodes and copies, and how much of that a backward pass hides.

Owns sizes and how a time is taken: by events of the device around many repetitions, after some that do not count, the
median of rounds. Must not know: servers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.checks import SHORT, layout_of
from paramserver.wire.codecs import Codec
from worker import device as devices
from worker.device.kernels import LIMITS
from worker.device.outgoing import BUCKET_BYTES, Outgoing

WARM_UP, REPEATS, ROUNDS = 3, 10, 7
LAYERS = 32
LONGER = 2.0
"""How much longer than the way out the backward pass is made that is to hide it."""


def described(device: devices.Device) -> dict[str, Any]:
    cuda = device.xp.cuda
    properties = cuda.runtime.getDeviceProperties(device.number)
    clock, width = properties.get("memoryClockRate", 0), properties.get("memoryBusWidth", 0)
    return {
        "name": device.description,
        "memory_bytes": int(properties["totalGlobalMem"]),
        # Two transfers a clock; newer drivers no longer say it.
        "memory_gb_per_s_by_its_clock": round(2 * clock * 1e3 * width / 8 / 1e9, 1) or None,
        "cupy": device.xp.__version__,
        "cuda_runtime": cuda.runtime.runtimeGetVersion(),
        "cuda_driver": cuda.runtime.driverGetVersion(),
    }


class Rates:
    def __init__(self, device: devices.Device, *, quick: bool) -> None:
        self._device = device
        self._cuda = device.xp.cuda
        self._backend: Any = device.backend()
        self._warm_up, self._rounds, self._repeats = (1, 1, 1) if quick else (WARM_UP, ROUNDS, REPEATS)
        self._elements = 1 << (16 if quick else 26)
        self._quick = quick

    def _timed(self, call: Callable[[], object], first: Any, last: Any | None = None) -> float:
        """Seconds a call, from `first`'s stream to `last`'s."""
        for _ in range(self._warm_up):
            call()
        self._backend.wait()
        found = []
        for _ in range(self._rounds):
            start, end = self._cuda.Event(), self._cuda.Event()
            start.record(first)
            for _ in range(self._repeats):
                call()
            end.record(last or first)
            end.synchronize()
            found.append(self._cuda.get_elapsed_time(start, end) / 1e3 / self._repeats)
            self._backend.wait()
        return statistics.median(found)

    def _wall(self, call: Callable[[], object]) -> float:
        for _ in range(self._warm_up):
            call()
        found = []
        for _ in range(self._rounds * self._repeats):
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    # --- parts

    def gather(self) -> list[dict[str, Any]]:
        """Also the time that the calling thread spends on it, which holds up whatever it would launch next."""
        rows = []
        for count in (1, 100, 10_000):
            count = min(count, 1000) if self._quick else count
            sizes = [self._elements // count] * count
            layout = layout_of(sizes)
            names = [tensor.name for tensor in layout.spec.tensors]
            arrays = {name: self._device.xp.zeros(size, np.float32) for name, size in zip(names, sizes, strict=True)}
            flat, first = self._backend.zeros(layout.elements, np.float32), self._backend.zeros(1, np.uint64)
            group = self._backend.group([layout.tensor_slice(at) for at in range(count)])
            given = list(arrays.values())

            def call(group: Any = group, given: Any = given, flat: Any = flat, first: Any = first) -> None:
                group.gather(given, flat, 1.0, LIMITS[Codec.BF16], first)

            seconds = self._timed(call, self._backend.work)
            outgoing = Outgoing(layout, Codec.BF16, self._backend)

            def put(outgoing: Outgoing = outgoing, arrays: Any = arrays) -> None:
                outgoing.put_all(arrays)
                outgoing.take()

            rows.append(
                {
                    "tensors": count,
                    "bytes": layout.elements * 4,
                    "gather_ms": seconds * 1e3,
                    "gb_per_s": layout.elements * 8 / seconds / 1e9,
                    "whole_way_out_bf16_ms": self._wall(put) * 1e3,
                }
            )
        return rows

    def codecs(self) -> dict[str, Any]:
        """Bytes are those read and written."""
        count, backend = self._elements, self._backend
        flat, other = backend.zeros(count, np.float32), backend.zeros(count, np.float32)
        shorts = backend.zeros(count, np.uint16)

        def copy() -> None:
            with self._backend.work:
                other[...] = flat

        memory = count * 8 / self._timed(copy, backend.work) / 1e9
        rows = []
        for codec in SHORT:
            for name, call in (
                ("encode", lambda codec=codec: backend.encode(codec, flat, shorts, 0, count)),
                ("decode", lambda codec=codec: backend.decode(codec, shorts, flat, 0, count)),
            ):
                rate = count * 6 / self._timed(call, backend.work) / 1e9
                rows.append(
                    {"kernel": f"{name}_{codec.name.lower()}", "gb_per_s": rate, "share_of_copy": rate / memory}
                )
        return {"elements": count, "copy_within_the_device_gb_per_s": memory, "rows": rows}

    def copies(self) -> dict[str, Any]:
        """By bucket, as they are made, against one copy of all of it; and from memory that is not page-locked."""
        count, backend = self._elements, self._backend
        array, pinned = backend.zeros(count, np.float32), backend.pinned(count, np.float32)
        bucket = BUCKET_BYTES // 4
        size = count * 4 / 1e9

        def by_bucket(copy: Callable[..., None], host: Any, target: Any) -> Callable[[], None]:
            def call() -> None:
                for start in range(0, count, bucket):
                    copy(host, target, start, min(start + bucket, count))

            return call

        stream = backend.copies
        pageable = np.zeros(count, np.float32)
        out = self._timed(lambda: array.get(stream=stream, out=pinned, blocking=False), stream)
        into = self._timed(lambda: array.set(pinned, stream=stream), stream)
        ours_out = self._timed(by_bucket(backend.download, array, pinned), stream)
        ours_into = self._timed(by_bucket(backend.upload, pinned, array), stream)
        plain = self._wall(lambda: array.get(stream=stream, out=pageable))
        return {
            "bytes": count * 4,
            "bucket_bytes": BUCKET_BYTES,
            "one_copy_out_gb_per_s": size / out,
            "one_copy_in_gb_per_s": size / into,
            "out_gb_per_s": size / ours_out,
            "in_gb_per_s": size / ours_into,
            "out_not_page_locked_gb_per_s": size / plain,
            "share_out": out / ours_out,
            "share_in": into / ours_into,
        }

    def overlap(self) -> dict[str, Any]:
        """A backward pass of matrix products, which is longer than the way out, with a gradient put after each."""
        xp, each = self._device.xp, self._elements // LAYERS // 4
        layout = layout_of([each] * LAYERS)
        gradients = {tensor.name: xp.zeros(each, np.float32) for tensor in layout.spec.tensors}
        outgoing = Outgoing(layout, Codec.BF16, self._backend)
        side = 32 if self._quick else 2048
        left = xp.zeros((side, side), np.float32)
        stream = self._cuda.Stream(non_blocking=True)
        products = 1

        def backward(put: Callable[[str, Any], None] | None) -> None:
            with stream:
                for name in reversed(gradients):
                    for _ in range(products):
                        left @ left
                    if put is not None:
                        put(name, gradients[name])

        def compute() -> None:
            backward(None)
            stream.synchronize()

        def out() -> None:
            for name in reversed(gradients):
                outgoing.put(name, gradients[name])
            outgoing.take()

        def both() -> None:
            backward(outgoing.put)
            outgoing.take()
            stream.synchronize()

        self._cuda.Device(self._device.number).synchronize()
        out_s = self._wall(out)
        if not self._quick:
            products = max(1, round(LONGER * out_s / self._wall(compute)))
        compute_s, both_s = self._wall(compute), self._wall(both)
        return {
            "bytes": layout.elements * 4,
            "layers": LAYERS,
            "compute_ms": compute_s * 1e3,
            "way_out_ms": out_s * 1e3,
            "both_ms": both_s * 1e3,
            "share_not_hidden": (both_s - compute_s) / out_s,
        }
