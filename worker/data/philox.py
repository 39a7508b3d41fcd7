"""Random numbers by their place: Philox4x32-10 (Salmon et al. 2011) over many counters at once.

A word is a function of (seed, domain, epoch, sample, index), computed without those before it, so it depends neither on
the order of samples nor on who draws how many. Invariants: integer arithmetic only, the published algorithm: the same
words on every machine and with every NumPy. Must not know: what they are drawn for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WordArray = npt.NDArray[np.uint32]

_ROUNDS = 10
_FACTORS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_BUMPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFF_FFFF)
_HIGH = np.uint64(32)


def philox(counters: npt.NDArray[np.uint32], key: tuple[int, int]) -> WordArray:
    """counters [4, n] to words [4, n]."""
    first, second, third, fourth = counters.astype(np.uint64)
    for made in range(_ROUNDS):
        keys = [np.uint64((word + made * bump) & 0xFFFF_FFFF) for word, bump in zip(key, _BUMPS, strict=True)]
        left, right = _FACTORS[0] * first, _FACTORS[1] * third
        first, second = (right >> _HIGH) ^ second ^ keys[0], right & _LOW
        third, fourth = (left >> _HIGH) ^ fourth ^ keys[1], left & _LOW
    return np.stack([first, second, third, fourth]).astype(np.uint32)


def words(
    seed: int, domain: int, epochs: npt.NDArray[np.int64], samples: npt.NDArray[np.int64], count: int
) -> WordArray:
    """[len(samples), count]: `count` words of each (epoch, sample). `seed` below 2^64, `domain` below 2^8 tells uses
    of one seed apart, samples are below 2^32 and epochs below 2^56."""
    blocks = -(-count // 4)
    shape = (len(samples), blocks)
    counters = np.empty((4, *shape), np.uint32)
    counters[0] = np.arange(blocks)
    counters[1] = samples[:, None]
    counters[2] = (epochs & 0xFFFF_FFFF)[:, None]
    counters[3] = (((epochs >> 32) << 8) | domain)[:, None]
    made = philox(counters.reshape(4, -1), (seed & 0xFFFF_FFFF, seed >> 32))
    return made.reshape(4, *shape).transpose(1, 2, 0).reshape(len(samples), -1)[:, :count]


def uniform(drawn: WordArray) -> npt.NDArray[np.float64]:
    """Words as numbers in [0, 1)."""
    return drawn.astype(np.float64) * 2.0**-32
