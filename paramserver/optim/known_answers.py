"""Is this machine's arithmetic ours? Each thread that applies asks at start (RULES S13).

Owns a fixed set of inputs for every kernel (ordinary, huge, subnormal, infinite) and the digest of what must come
out. Nodes compare `known_answers()` when they join. Must not know: nodes, threads.

ArithmeticError (built in)
└── ArithmeticDiffers    this thread flushes subnormals to zero, or a kernel gives other bits: it must not apply
"""

from __future__ import annotations

import numpy as np

from paramserver.optim.factory import make
from paramserver.optim.interface import Update
from paramserver.wire.checksum import digest
from paramserver.wire.codecs import Codec, decode, encode
from paramserver.wire.layout import FLOAT, Flat
from paramserver.wire.spec import OptimizerSpec, adam, momentum, sgd
from paramserver.wire.tree import tree_sum

EXPECTED = bytes.fromhex("9494047d678790d1b718707c4ab17986")
"""What `known_answers()` is on every machine of ours; changes only together with a kernel."""

_SHORTS = np.arange(1 << 16, dtype="<u2")
_ELEMENTS = 70_001  # no multiple of any vector's length
_KERNELS: tuple[OptimizerSpec, ...] = (
    sgd(0.1),
    sgd(0.1, weight_decay=0.01),
    momentum(0.05),
    momentum(0.05, 0.7, nesterov=True, weight_decay=0.003),
    adam(),
    adam(0.02, beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1),
)


class ArithmeticDiffers(ArithmeticError):
    """The calling thread computes other bits than the rest of the cluster would."""


def check_arithmetic() -> None:
    """Raises `ArithmeticDiffers` if the calling thread must not apply. Takes some milliseconds."""
    tiny = np.array([1e-38, 3e-45], FLOAT)
    if not (np.multiply(tiny, np.float32(0.5)) > 0).all():
        raise ArithmeticDiffers("this thread flushes subnormal numbers to zero (some library set FTZ or DAZ)")
    found = known_answers()
    if found != EXPECTED:
        raise ArithmeticDiffers(f"known answers are {EXPECTED.hex()}, this machine computes {found.hex()}")


def known_answers() -> bytes:
    """Digest of what every kernel makes of the fixed inputs, 16 bytes; compared between nodes."""
    parts: list[bytes] = []
    with np.errstate(all="ignore"):
        for numbers in _KERNELS:
            parts += _run(numbers)
        parts.append(tree_sum([_numbers(seed) for seed in range(7)]).tobytes())
    for codec in (Codec.BF16, Codec.FP16):
        parts.append(bytes(encode(codec, _numbers(1))))
        parts.append(decode(codec, _SHORTS.tobytes(), _SHORTS.size).tobytes())
    return digest(parts)


def _run(numbers: OptimizerSpec) -> list[bytes]:
    optimizer = make(numbers)
    weights = _numbers(1)
    slots = tuple(np.zeros(_ELEMENTS, FLOAT) for _ in range(optimizer.slots))
    scalars = optimizer.scalars
    for step in range(3):
        out = np.empty(_ELEMENTS, FLOAT)
        update = Update(
            weights=weights,
            gradient=_numbers(2 + step),
            count=step + 1,
            slots=slots,
            scalars=scalars,
            out=out,
            slots_out=slots,
        )
        scalars = optimizer.update(update)
        weights = out
    return [weights.tobytes(), *(slot.tobytes() for slot in slots), np.array(scalars, "<f8").tobytes()]


def _numbers(seed: int) -> Flat:
    """Floats of every size from a fixed integer sequence: no library's generator, which may change."""
    state = np.arange(_ELEMENTS, dtype=np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    bits = (state >> np.uint64(32)).astype("<u4")
    values = bits.view(FLOAT).copy()
    # Half of them of everyday size, so that sums and square roots matter; the others any bit pattern but NaN.
    ordinary = slice(0, None, 2)
    values[ordinary] = (bits[ordinary].astype("<i4") >> 8).astype(FLOAT) * np.float32(2.0**-20)
    values[np.isnan(values)] = np.float32(1.5)
    return values
