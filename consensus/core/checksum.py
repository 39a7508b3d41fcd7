"""CRC32C of buffers: what travels with every payload (RULES W1).

Owns the one import of the C implementation. Invariant: large buffers are summed with the interpreter lock released, so
that checking 8 MiB never holds up the event loop. Must not know: what the bytes mean.
"""

from __future__ import annotations

from typing import Protocol

import crc32c as _implementation

from consensus.core.interface import Payload


class _Checksum(Protocol):
    def __call__(self, data: Payload, seed: int = 0, /) -> int: ...


crc32c: _Checksum = _implementation.crc32c
"""CRC32C (Castagnoli) of `data`, continued from `seed`. The C function itself: several are made for every command."""
