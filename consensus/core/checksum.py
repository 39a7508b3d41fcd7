"""CRC32C of buffers: what travels with every payload (RULES W1).

Owns the one import of the C implementation. Invariant: large buffers are summed with the interpreter lock released, so
that checking 8 MiB never holds up the event loop. Must not know: what the bytes mean.
"""

from __future__ import annotations

import crc32c as _implementation

from consensus.core.interface import Payload


def crc32c(data: Payload, seed: int = 0) -> int:
    """CRC32C (Castagnoli) of `data`, continued from `seed`."""
    return int(_implementation.crc32c(data, seed))
