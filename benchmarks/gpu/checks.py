"""Whether a device gives the bits of NumPy: its kernels, and the whole way out and back.

Must not know: times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from paramserver.wire.codecs import Codec, Encoded, encode, floats
from paramserver.wire.layout import Layout
from paramserver.wire.spec import ModelSpec, TensorSpec, sgd
from worker import device as devices
from worker.device.incoming import Incoming
from worker.device.kernels import LIMITS, NOTHING
from worker.device.outgoing import Outgoing

SHORT = (Codec.BF16, Codec.FP16)
ODD = 3
"""Elements left out at both ends, so that ranges begin and end anywhere."""


def all_of(device: devices.Device) -> list[dict[str, Any]]:
    """A row a check: `equal` says whether every bit is."""
    rows = []
    for codec in SHORT:
        rows.append(_row(f"encode {codec.name}", hard_floats().size, partial(_encode, device, codec)))
        rows.append(_row(f"decode {codec.name}", 2**16, partial(_decode, device, codec)))
    rows.append(_row("gather", sum(array.size for array in tensors()), partial(_gather, device)))
    rows.append(_row("scatter", sum(array.size for array in tensors()), partial(_scatter, device)))
    for codec in Codec:
        rows.append(_row(f"gradient and weights in {codec.name}", None, partial(_both_ways, device, codec)))
    return rows


def _row(what: str, elements: int | None, check: Callable[[], bool]) -> dict[str, Any]:
    return {"check": what, "elements": elements, "equal": bool(check())}


def hard_floats() -> np.ndarray:
    """Every sign and exponent with significands around each place where rounding turns; NaNs, infinities, denormals."""
    significands = {0, 1, 0x7FFFFF}
    for bit in range(23):
        for near in (-1, 0, 1):
            significands |= {((1 << bit) + near) & 0x7FFFFF, ((3 << bit) + near) & 0x7FFFFF}
    heads = np.arange(512, dtype=np.uint32) << 23
    bits = (heads[:, None] | np.array(sorted(significands), np.uint32)).reshape(-1)
    random = np.random.default_rng(1).integers(0, 2**32, 200_000, np.uint32)
    return np.concatenate([bits, random]).view(np.float32)


def tensors() -> list[np.ndarray]:
    """Of all kinds, below and above the size of a kernel's piece, with what does not fit in float32."""
    random = np.random.default_rng(2)
    made = [random.standard_normal(size).astype(kind) for size in (1, 5, 4096, 12281) for kind in ("f4", "f8")]
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    return [*made, halves, np.array([1e300, 1e-300, -1e-46, np.inf, np.nan, 1 + 2.0**-24, 1 + 3 * 2.0**-24])]


def _encode(device: devices.Device, codec: Codec) -> bool:
    backend, values = device.backend(), hard_floats()
    flat, shorts = device.from_host(values), backend.zeros(values.size, np.uint16)
    backend.after(backend.caller())
    backend.encode(codec, flat, shorts, ODD, values.size - ODD)
    backend.wait()
    expected = np.zeros(values.size, np.uint16)
    expected[ODD:-ODD] = np.frombuffer(encode(codec, values[ODD:-ODD].copy()), np.uint16)
    return device.to_host(shorts).tobytes() == expected.tobytes()


def _decode(device: devices.Device, codec: Codec) -> bool:
    backend, values = device.backend(), np.arange(2**16, dtype=np.uint16)
    shorts, flat = device.from_host(values), backend.zeros(values.size, np.float32)
    backend.after(backend.caller())
    backend.decode(codec, shorts, flat, 0, values.size)
    backend.wait()
    return device.to_host(flat).tobytes() == floats(Encoded(codec, values)).tobytes()


def _places(arrays: list[np.ndarray]) -> list[slice]:
    ends = np.cumsum([array.size for array in arrays]).tolist()
    return [slice(end - array.size, end) for array, end in zip(arrays, ends, strict=True)]


def _gather(device: devices.Device) -> bool:
    backend, arrays = device.backend(), tensors()
    places, factor = _places(arrays), np.float32(2.0**-15)
    flat, first = backend.zeros(places[-1].stop, np.float32), backend.zeros(1, np.uint64)
    backend.set_bits(first)
    given = [device.from_host(array) for array in arrays]
    backend.after(backend.caller())
    backend.group(places).gather(given, flat, float(factor), LIMITS[Codec.FP16], first)
    backend.wait()
    with np.errstate(all="ignore"):
        expected = np.concatenate([array.astype(np.float32) for array in arrays]) * factor
        beyond = np.flatnonzero(~(np.abs(expected) < 65520))
    same_first = int(device.to_host(first)[0]) == (int(beyond[0]) if beyond.size else NOTHING)
    return same_first and device.to_host(flat).tobytes() == expected.tobytes()


def _scatter(device: devices.Device) -> bool:
    backend, arrays = device.backend(), [array for array in tensors() if array.dtype != np.float16]
    places = _places(arrays)
    values = hard_floats()[: places[-1].stop]
    into = [device.from_host(np.zeros_like(array)) for array in arrays]
    flat = device.from_host(values)
    backend.after(backend.caller())
    backend.group(places).scatter(flat, into)
    backend.wait()
    with np.errstate(all="ignore"):
        return all(
            device.to_host(array).tobytes() == values[place].astype(array.dtype).tobytes()
            for array, place in zip(into, places, strict=True)
        )


def layout_of(sizes: list[int]) -> Layout:
    named = tuple(TensorSpec(f"t{at}", (size,)) for at, size in enumerate(sizes))
    return Layout(ModelSpec("gpu", named, sgd(0.1), 1))


def _both_ways(device: devices.Device, codec: Codec) -> bool:
    """Tensor by tensor and all at once; then what came out is loaded as weights."""
    values = hard_floats()
    sizes = [1, 5, 4096, 100_000]
    sizes.append(values.size - sum(sizes))
    layout, backend = layout_of(sizes), device.backend()
    arrays = {name: device.from_host(array) for name, array in layout.unflatten(values).items()}
    outgoing = Outgoing(layout, codec, backend, bucket_bytes=64 << 10)
    incoming = Incoming(layout, codec, backend)
    expected = bytes(encode(codec, values))
    for at_once in (False, True):
        if at_once:
            outgoing.put_all(arrays)
        else:
            for name in reversed(arrays):
                outgoing.put(name, arrays[name])
        came = outgoing.take().values
        shorts: Any = came.shorts if isinstance(came, Encoded) else came
        if shorts.tobytes() != expected:
            return False
    landing = incoming.landing.flat
    if isinstance(landing, Encoded):
        np.copyto(landing.shorts, shorts)
        decoded = floats(Encoded(codec, shorts))
    else:
        np.copyto(landing, shorts)
        decoded = values
    loaded = incoming.load()
    kept = layout.unflatten(decoded)
    return all(device.to_host(loaded[name]).tobytes() == array.tobytes() for name, array in kept.items())
