"""Receiving a snapshot of the leader's into a file.

Owns at most one receipt a group: a temporary file that chunks go to in order, on the files lane, each checked before it
is written. Invariants: nothing is offered to the core before the file is whole, durable and renamed; on disk the old
state stays intact until then; a receipt that hears nothing for its lease, or that another one replaces, is removed.
Must not know: what the content means, how it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from consensus.core.interface import GroupId, ReplicaId, SnapshotMeta
from consensus.runtime.services import FILES_LANE, Services
from consensus.storage.checksum import crc32c
from consensus.storage.errors import StorageFull
from consensus.storage.interface import SnapshotWriter
from consensus.transport.interface import SnapshotAnswer, SnapshotChunk


@dataclass(slots=True)
class _Receipt:
    leader: ReplicaId
    leader_incarnation: int
    meta: SnapshotMeta
    heard_ms: int
    expected: int = 0
    """Offset of the next chunk to take."""
    waiting: int = 0
    """Chunks handed to the lane and not done."""
    whole: bool = False
    # On the files lane only:
    writer: SnapshotWriter | None = None
    written: int = 0
    closed: bool = False


class SnapshotReceiving:
    """Of one group. `offer` gets the meta of a file that is whole and durable, and the message that completed it."""

    def __init__(
        self,
        services: Services,
        *,
        group: GroupId,
        replica: ReplicaId,
        answer: Callable[[SnapshotAnswer], None],
        offer: Callable[[SnapshotMeta, SnapshotChunk], None],
    ) -> None:
        self._services = services
        self._group = group
        self._replica = replica
        self._answer = answer
        self._offer = offer
        self._receipt: _Receipt | None = None

    @property
    def active(self) -> bool:
        return self._receipt is not None

    def chunk(self, message: SnapshotChunk, *, term: int) -> None:
        """A chunk of the leader of `term`, which is this replica's."""
        reason = self._refusal(message)
        if reason:
            self._services.dropped[reason] += 1
            self._say(message, term=term, next_offset=0, refused=True)
            return
        receipt = self._receipt_for(message)
        if receipt is None:
            self._say(message, term=term, next_offset=0, refused=True)
            return
        receipt.heard_ms = self._services.clock.now_ms()
        if receipt.whole or message.offset != receipt.expected or self._full(receipt):
            # Doubled, reordered or behind a lost one: the answer says what is next.
            if not receipt.waiting:
                self._say(message, term=term, next_offset=receipt.expected)
            return
        receipt.expected += len(message.data)
        receipt.whole = message.last
        receipt.waiting += 1
        self._services.run(
            FILES_LANE,
            lambda: self._write(receipt, message),
            lambda failed: self._was_written(receipt, message, term, failed),
        )

    def _full(self, receipt: _Receipt) -> bool:
        return receipt.waiting >= self._services.options.receive_window_chunks

    def _refusal(self, message: SnapshotChunk) -> str:
        options = self._services.options
        end = message.offset + len(message.data)
        if len(message.data) > options.chunk_bytes_max or message.meta.size_bytes > options.snapshot_bytes_max:
            return "snapshot_chunk_too_long"
        if message.offset < 0 or end > message.meta.size_bytes or message.last != (end == message.meta.size_bytes):
            return "snapshot_chunk_out_of_range"
        if not message.data and message.meta.size_bytes:
            return "snapshot_chunk_empty"
        return ""

    def _receipt_for(self, message: SnapshotChunk) -> _Receipt | None:
        """The receipt that the chunk belongs to; a new one for a first chunk; None for the middle of an unknown one."""
        receipt = self._receipt
        if receipt is not None:
            same = (receipt.leader, receipt.leader_incarnation, receipt.meta)
            if same == (message.sender, message.incarnation, message.meta):
                return receipt
        if message.offset != 0:
            self._services.dropped["snapshot_chunk_unknown"] += 1
            return None
        self.stop()
        self._receipt = _Receipt(
            message.sender, message.incarnation, message.meta, heard_ms=self._services.clock.now_ms()
        )
        return self._receipt

    # --- on the files lane ------------------------------------------------------------------------------------------

    def _write(self, receipt: _Receipt, message: SnapshotChunk) -> str:
        """Returns why it failed, or an empty string."""
        if receipt.closed:
            return "snapshot_receipt_closed"
        if message.offset != receipt.written:
            return "snapshot_chunk_out_of_order"
        if crc32c(message.data) != message.crc:
            return "snapshot_chunk_damaged"
        try:
            if receipt.writer is None:
                receipt.writer = self._services.store.create(self._group, receipt.meta)
            receipt.writer.write(message.data)
            receipt.written += len(message.data)
            if message.last:
                receipt.closed = True
                receipt.writer.commit()
        except (StorageFull, ValueError):
            receipt.closed = True
            return "snapshot_not_stored"
        return ""

    # --- back on the host's thread ----------------------------------------------------------------------------------

    def _was_written(self, receipt: _Receipt, message: SnapshotChunk, term: int, failed: str) -> None:
        receipt.waiting -= 1
        if receipt is not self._receipt:
            return
        if failed:
            self._services.dropped[failed] += 1
            if failed in ("snapshot_chunk_damaged", "snapshot_chunk_out_of_order"):
                # Asked for again, and what was taken behind it.
                receipt.expected = min(receipt.expected, message.offset)
                receipt.whole = False
                self._say(message, term=term, next_offset=receipt.expected)
            else:
                self._receipt = None
                self._say(message, term=term, next_offset=0, refused=True)
            return
        self._say(message, term=term, next_offset=message.offset + len(message.data))
        if message.last:
            self._receipt = None
            self._offer(receipt.meta, message)

    def _say(self, message: SnapshotChunk, *, term: int, next_offset: int, refused: bool = False) -> None:
        self._answer(
            SnapshotAnswer(
                sender=self._replica,
                to=message.sender,
                term=term,
                incarnation=self._services.incarnation,
                snapshot_id=message.meta.snapshot_id,
                next_offset=next_offset,
                refused=refused,
                index=message.meta.index,
            )
        )

    def tick(self, now_ms: int) -> None:
        receipt = self._receipt
        if receipt is not None and now_ms - receipt.heard_ms >= self._services.options.receive_lease_ms:
            self._services.dropped["snapshot_receipt_expired"] += 1
            self.stop()

    def stop(self) -> None:
        """Give up what is half there."""
        receipt, self._receipt = self._receipt, None
        if receipt is None:
            return

        def abort() -> None:
            if not receipt.closed and receipt.writer is not None:
                receipt.writer.abort()
            receipt.closed = True

        self._services.lanes.run(FILES_LANE, abort, lambda _: None)
