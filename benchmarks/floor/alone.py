"""What is done to a block inside one process, each alone: sum, log, apply, digest, checksum. CPU seconds per GB.

The blocks are of a model larger than the caches, as in a server. The log is written as the real one is: several
blocks gathered into one write to a file that was zeroed before, then one fdatasync. Must not know: what the terms add
up to.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xxhash
from crc32c import crc32c

from paramserver import adam, sgd
from paramserver.optim.factory import make
from paramserver.optim.interface import Update

BLOCK_BYTES = 1 << 20
BLOCKS = 64
FLUSH_BLOCKS = 4
LOG_BYTES = 256 << 20


def model(seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.standard_normal(BLOCK_BYTES // 4, dtype=np.float32) for _ in range(BLOCKS)]


def turns(gigabytes: float) -> Iterator[int]:
    for number in range(max(BLOCKS, round(gigabytes * 1e9 / BLOCK_BYTES))):
        yield number % BLOCKS


def timed(work: Callable[[int], object], gigabytes: float) -> float:
    for at in range(BLOCKS):
        work(at)
    before_s, count = time.process_time(), 0
    for at in turns(gigabytes):
        work(at)
        count += 1
    return (time.process_time() - before_s) / (count * BLOCK_BYTES / 1e9)


def total(gigabytes: float) -> float:
    """One more contribution added to a sum."""
    sums, more = model(1), model(2)
    return timed(lambda at: np.add(sums[at], more[at], out=sums[at]), gigabytes)


def apply(name: str, gigabytes: float) -> float:
    spec = sgd(1e-3) if name == "sgd" else adam(1e-3)
    update = make(spec)
    weights, gradient = [model(1), model(3)], model(2)
    slots = [tuple(np.zeros_like(one) for _ in range(update.slots)) for one in gradient]
    scalars = [update.scalars for _ in gradient]
    turn = [0] * BLOCKS

    def work(at: int) -> None:
        now = turn[at]
        turn[at] = 1 - now
        scalars[at] = update.update(
            Update(
                weights=weights[now][at],
                gradient=gradient[at],
                count=1,
                slots=slots[at],
                scalars=scalars[at],
                out=weights[1 - now][at],
                slots_out=slots[at],
            )
        )

    return timed(work, gigabytes)


def digest(gigabytes: float) -> float:
    blocks = [memoryview(one).cast("B") for one in model(1)]
    return timed(lambda at: xxhash.xxh3_128_digest(blocks[at]), gigabytes)


def copy(gigabytes: float) -> float:
    """From one block to another."""
    blocks, targets = model(1), model(2)
    return timed(lambda at: np.copyto(targets[at], blocks[at]), gigabytes)


def checksum(gigabytes: float) -> float:
    blocks = [memoryview(one).cast("B") for one in model(1)]
    return timed(lambda at: crc32c(blocks[at]), gigabytes)


def log(gigabytes: float) -> float:
    blocks = [memoryview(one).cast("B") for one in model(1)]
    with tempfile.TemporaryDirectory(prefix="paramserver-bench-") as folder:
        file = os.open(Path(folder) / "log", os.O_RDWR | os.O_CREAT)
        try:
            for offset in range(0, LOG_BYTES, len(ZEROS)):
                os.pwrite(file, ZEROS, offset)
            os.fsync(file)
            position = 0

            def work(at: int) -> None:
                nonlocal position
                if at % FLUSH_BLOCKS == 0:
                    os.pwritev(file, blocks[at : at + FLUSH_BLOCKS], position)
                    os.fdatasync(file)
                    position = (position + FLUSH_BLOCKS * BLOCK_BYTES) % LOG_BYTES

            return timed(work, gigabytes)
        finally:
            os.close(file)


ZEROS = bytes(4 << 20)
