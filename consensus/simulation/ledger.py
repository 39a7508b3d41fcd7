"""The state machine that the simulator brings along: a ledger that clients append to, each line exactly once.

Owns the encoding of its commands and of its snapshot. Invariants: deterministic; a client's line n is taken only after
its line n - 1; a repeated line has no effect and is answered with its first place. Must not know: replication.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from consensus.core.interface import Entry, Payload

_COMMAND = struct.Struct("<II")
_LINE = struct.Struct("<II16s")
_SIZE = struct.Struct("<I")
EMPTY = bytes(16)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client's line stands in the ledger, from 0. `repeated`: it stood there already."""

    position: int
    repeated: bool


@dataclass(frozen=True, slots=True)
class OutOfOrder:
    """The client's last line was not the one before; nothing was taken."""

    last: int


def encode(client: int, sequence: int, filler: bytes) -> bytes:
    """`sequence` counts from 1."""
    return _COMMAND.pack(client, sequence) + filler


class Ledger:
    """`consensus.runtime.interface.StateMachine`."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, int]] = []
        """(client, sequence) of each line."""
        self._chain: list[bytes] = []
        """Digest over each line's content and all before."""
        self._last: dict[int, tuple[int, int]] = {}
        """client -> (sequence, position) of its last line."""

    def apply(self, entry: Entry) -> Place | OutOfOrder:
        client, sequence = _COMMAND.unpack_from(entry.payload)
        last, position = self._last.get(client, (0, -1))
        if sequence == last:
            return Place(position, True)
        if sequence != last + 1:
            return OutOfOrder(last)
        position = len(self.lines)
        digest = xxhash.xxh3_128(self.digest())
        digest.update(entry.payload)
        self.lines.append((client, sequence))
        self._chain.append(digest.digest())
        self._last[client] = (sequence, position)
        return Place(position, False)

    def digest(self) -> bytes:
        return self._chain[-1] if self._chain else EMPTY

    def snapshot(self) -> Iterator[Payload]:
        yield _SIZE.pack(len(self.lines))
        for (client, sequence), digest in zip(list(self.lines), list(self._chain), strict=True):
            yield _LINE.pack(client, sequence, digest)

    def restore(self, chunks: Iterator[memoryview]) -> None:
        content = b"".join(chunks)
        (count,) = _SIZE.unpack_from(content)
        if len(content) != _SIZE.size + count * _LINE.size:
            raise ValueError(f"a ledger of {count} lines in {len(content)} bytes")
        self.lines, self._chain, self._last = [], [], {}
        for position, (client, sequence, digest) in enumerate(_LINE.iter_unpack(content[_SIZE.size :])):
            self.lines.append((client, sequence))
            self._chain.append(digest)
            self._last[client] = (sequence, position)

    def size_bytes(self) -> int:
        return _SIZE.size + len(self.lines) * _LINE.size
