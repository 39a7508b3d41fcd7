"""The state machine that the simulator brings along: a ledger, a register and a counter, each command exactly once.

Owns the encoding of its commands and of its snapshot. Invariants: deterministic; every command of a client is a line of
the ledger, and may change the register or the counter too; a client's command n is taken only after its command n - 1;
a repeated one has no effect and is answered as it was the first time. Must not know: replication.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from consensus.core.interface import Entry, Payload

_COMMAND = struct.Struct("<IIBq")
_LINE = struct.Struct("<II16s")
_HEAD = struct.Struct("<IIqq")
_LAST = struct.Struct("<IIIq")
EMPTY = bytes(16)


class Op(IntEnum):
    LINE = 0
    """Only a line of the ledger."""
    WRITE = 1
    """The register takes the value."""
    ADD = 2
    """The value is added to the counter; answered with the sum."""
    READ = 3
    """Never a command: a read of register and counter, by read index."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client's command stands in the ledger, from 0, and what it answers. `repeated`: it stood there before."""

    position: int
    repeated: bool
    value: int = 0


@dataclass(frozen=True, slots=True)
class OutOfOrder:
    """The client's last command was not the one before; nothing was taken."""

    last: int


def encode(client: int, sequence: int, filler: bytes, op: Op = Op.LINE, value: int = 0) -> bytes:
    """`sequence` counts from 1."""
    return _COMMAND.pack(client, sequence, op, value) + filler


class Ledger:
    """`consensus.runtime.interface.StateMachine`."""

    def __init__(self) -> None:
        self.register = 0
        self.counter = 0
        self.lines: list[tuple[int, int]] = []
        """(client, sequence) of each line."""
        self._chain: list[bytes] = []
        """Digest over each line's content and all before."""
        self.last: dict[int, tuple[int, int, int]] = {}
        """client -> (sequence, position, answered value) of its last command."""

    def apply(self, entry: Entry) -> Place | OutOfOrder:
        client, sequence, op, value = _COMMAND.unpack_from(entry.payload)
        last, position, answered = self.last.get(client, (0, -1, 0))
        if sequence == last:
            return Place(position, True, answered)
        if sequence != last + 1:
            return OutOfOrder(last)
        if op == Op.WRITE:
            self.register = answered = value
        elif op == Op.ADD:
            self.counter = answered = self.counter + value
        position = len(self.lines)
        digest = xxhash.xxh3_128(self.digest())
        digest.update(entry.payload)
        self.lines.append((client, sequence))
        self._chain.append(digest.digest())
        self.last[client] = (sequence, position, answered)
        return Place(position, False, answered)

    def digest(self) -> bytes:
        """Of all commands in their order; the register and the counter follow from these."""
        return self._chain[-1] if self._chain else EMPTY

    def snapshot(self) -> Iterator[Payload]:
        lines, digests, last = tuple(self.lines), tuple(self._chain), tuple(self.last.items())
        head = _HEAD.pack(len(lines), len(last), self.register, self.counter)

        def chunks() -> Iterator[Payload]:
            yield head
            for client, (sequence, position, answered) in last:
                yield _LAST.pack(client, sequence, position, answered)
            for (client, sequence), digest in zip(lines, digests, strict=True):
                yield _LINE.pack(client, sequence, digest)

        return chunks()

    def restore(self, chunks: Iterator[memoryview]) -> None:
        content = b"".join(chunks)
        lines, clients, self.register, self.counter = _HEAD.unpack_from(content)
        middle = _HEAD.size + clients * _LAST.size
        if len(content) != middle + lines * _LINE.size:
            raise ValueError(f"a ledger of {lines} lines and {clients} clients in {len(content)} bytes")
        self.last = {
            client: (sequence, position, answered)
            for client, sequence, position, answered in _LAST.iter_unpack(content[_HEAD.size : middle])
        }
        self.lines, self._chain = [], []
        for client, sequence, digest in _LINE.iter_unpack(content[middle:]):
            self.lines.append((client, sequence))
            self._chain.append(digest)

    def size_bytes(self) -> int:
        return _HEAD.size + len(self.last) * _LAST.size + len(self.lines) * _LINE.size
