"""Whether all replicas of a group apply the same entries in the same order, none left out.

Owns the chain of applied entries (state-machine safety, seen where it counts), and the wrapper through which every
state machine is seen. Invariants: a broken promise raises `Violated` at the event that broke it; a state never goes
back within a life. Must not know: what entries mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from consensus.core.interface import Entry, NodeId, Payload
from consensus.runtime.interface import Lender, StateMachine
from consensus.simulation.errors import Violated


class Witness:
    """One for a group: the chain of NORMAL entries that its replicas apply."""

    def __init__(self, group: int) -> None:
        self.group = group
        self._applied: dict[int, tuple[int, int]] = {}
        """index -> (term, CRC)."""
        self._next: dict[int, int] = {}
        """index -> the next applied index; 0 stands before the first."""

    def applied(self, node: NodeId, previous: int, entry: Entry) -> None:
        """`previous`: the NORMAL entry that this replica applied, or its snapshot held, before."""
        if entry.index <= previous:
            raise Violated(f"group {self.group}, node {node}: applies entry {entry.index} after entry {previous}")
        known = self._applied.setdefault(entry.index, (entry.term, entry.crc))
        if known != (entry.term, entry.crc):
            raise Violated(
                f"group {self.group}, node {node}: applies (term, crc) {(entry.term, entry.crc)} at {entry.index}, "
                f"another replica applied {known}"
            )
        expected = self._next.setdefault(previous, entry.index)
        if expected != entry.index:
            raise Violated(
                f"group {self.group}, node {node}: applies entry {entry.index} after {previous}, another replica "
                f"applied {expected} there"
            )


class WitnessedMachine:
    """A state machine whose witness sees all it applies. Its snapshots begin with the index of the last entry."""

    _INDEX_BYTES = 8

    def __init__(self, inner: StateMachine, witness: Witness, node: NodeId) -> None:
        self.inner = inner
        self.last_index = 0
        self._witness = witness
        self._node = node

    def apply(self, entry: Entry) -> Any:
        self._witness.applied(self._node, self.last_index, entry)
        self.last_index = entry.index
        return self.inner.apply(entry)

    def snapshot(self) -> Iterator[Payload]:
        return chain((self.last_index.to_bytes(self._INDEX_BYTES, "little"),), self.inner.snapshot())

    def lent_bytes(self, entry: Entry | None = None) -> int:
        return self.inner.lent_bytes(entry) if isinstance(self.inner, Lender) else 0

    def end_snapshot(self) -> None:
        if isinstance(self.inner, Lender):
            self.inner.end_snapshot()

    def restore(self, chunks: Iterator[memoryview]) -> None:
        head = b""
        rest = memoryview(b"")
        while len(head) < self._INDEX_BYTES:
            chunk = next(chunks)
            missing = self._INDEX_BYTES - len(head)
            head, rest = head + bytes(chunk[:missing]), memoryview(chunk)[missing:]
        index = int.from_bytes(head, "little")
        if index < self.last_index:
            raise Violated(f"node {self._node}: its state goes back from entry {self.last_index} to {index}")

        def remaining() -> Iterator[memoryview]:
            if len(rest):
                yield rest
            yield from chunks

        self.inner.restore(remaining())
        self.last_index = index

    def size_bytes(self) -> int:
        return self._INDEX_BYTES + self.inner.size_bytes()
