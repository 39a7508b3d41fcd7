"""Checksums and digests, one name each, so that both ends surely use the same.

CRC32C (Castagnoli) guards everything stored or sent; xxh3-128 names states. Must not know: what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import crc32c as _crc32c
import xxhash

Buffer: TypeAlias = bytes | bytearray | memoryview

DIGEST_BYTES = 16


def crc32c(buffer: Buffer, seed: int = 0) -> int:
    """CRC32C of a contiguous buffer, continued from `seed`. Large buffers are read without holding the GIL."""
    return int(_crc32c.crc32c(buffer, seed))


def digest(parts: Iterable[Buffer]) -> bytes:
    """xxh3-128 over the parts one after the other, `DIGEST_BYTES` long. Where one part ends is not part of it."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return bytes(state.digest())
