"""Receiving a snapshot of the leader's into a file.

Owns at most one receipt a group: a half-received file that chunks go to in order, on the files lane, each checked
before it is written. Invariants: nothing is offered before the file is whole, durable and renamed; on disk the old
state stays intact until then; what was received counts for whoever sends the same snapshot, over other connections, in
later terms, and in a next life of this process, which checks it first; a receipt that another one replaces, or to which
nothing is added for its lease, is removed, with its file. Must not know: what the content means, how it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from consensus.core.interface import GroupId, ReplicaId, SnapshotMeta
from consensus.runtime.services import FILES_LANE, Services
from consensus.storage.checksum import crc32c
from consensus.storage.errors import SnapshotDamaged, StorageFull
from consensus.storage.interface import SnapshotReceiver
from consensus.transport.interface import SnapshotAnswer, SnapshotChunk


@dataclass(slots=True)
class _Receipt:
    meta: SnapshotMeta
    progress_ms: int
    """When something was added last: chunks that add nothing renew no lease."""
    opened: bool = False
    """What an earlier life left of it is known."""
    early: list[tuple[SnapshotChunk, int]] = field(default_factory=list)
    """(chunk, term) that came before that."""
    expected: int = 0
    """Offset of the next chunk to take."""
    waiting: int = 0
    """Chunks handed to the lane and not done."""
    whole: bool = False
    # On the files lane only:
    writer: SnapshotReceiver | None = None
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
        self._sweep_at_ms = services.clock.now_ms() + services.options.receive_lease_ms
        """Until then what an earlier life left may be gone on with; 0: it was looked after."""

    @property
    def active(self) -> bool:
        return self._receipt is not None

    def moves(self, now_ms: int, *, within_ms: int) -> bool:
        """Something was added lately; the rest of one that does not move may never come."""
        return self._receipt is not None and now_ms - self._receipt.progress_ms < within_ms

    def chunk(self, message: SnapshotChunk, *, term: int) -> None:
        """A chunk of the leader of `term`, which is this replica's."""
        reason = self._refusal(message)
        if reason:
            self._services.dropped[reason] += 1
            self._say(message, term=term, next_offset=0, refused=True)
            return
        receipt = self._receipt_for(message)
        if receipt.opened:
            self._take(receipt, message, term)
        elif len(receipt.early) < self._services.options.receive_window_chunks:
            receipt.early.append((message, term))

    def _refusal(self, message: SnapshotChunk) -> str:
        options = self._services.options
        size, end = len(message.data), message.offset + len(message.data)
        if size > options.chunk_bytes_max or message.meta.size_bytes > options.snapshot_bytes_max:
            return "snapshot_chunk_too_long"
        if message.offset < 0 or end > message.meta.size_bytes or message.last != (end == message.meta.size_bytes):
            return "snapshot_chunk_out_of_range"
        if not size and message.meta.size_bytes:
            return "snapshot_chunk_empty"
        if size < options.chunk_bytes_min and not message.last:
            return "snapshot_chunk_too_short"
        return ""

    def _receipt_for(self, message: SnapshotChunk) -> _Receipt:
        """The receipt that the chunk belongs to: a snapshot's id stands for its content, whoever sends it."""
        receipt = self._receipt
        if receipt is not None and receipt.meta == message.meta:
            return receipt
        self.remove()
        self._sweep_at_ms = 0
        receipt = self._receipt = _Receipt(message.meta, self._services.clock.now_ms())
        self._services.run(FILES_LANE, lambda: self._open(receipt), lambda failed: self._was_opened(receipt, failed))
        return receipt

    def _take(self, receipt: _Receipt, message: SnapshotChunk, term: int) -> None:
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

    # --- on the files lane ------------------------------------------------------------------------------------------

    def _open(self, receipt: _Receipt) -> str:
        """Find what is there of it, and remove what is there of others. Returns why it can't be, or an empty string."""
        if receipt.closed:
            return "snapshot_receipt_closed"
        try:
            self._services.store.sweep(self._group, receipt.meta.snapshot_id)
            receipt.writer = self._services.store.receive(self._group, receipt.meta)
        except (StorageFull, ValueError):
            receipt.closed = True
            return "snapshot_not_stored"
        receipt.written = receipt.writer.held_bytes
        return ""

    def _write(self, receipt: _Receipt, message: SnapshotChunk) -> str:
        """Returns why it failed, or an empty string."""
        if receipt.closed or receipt.writer is None:
            return "snapshot_receipt_closed"
        if message.offset != receipt.written:
            return "snapshot_chunk_out_of_order"
        if crc32c(message.data) != message.crc:
            return "snapshot_chunk_damaged"
        try:
            receipt.writer.write(message.data)
            receipt.written += len(message.data)
            if message.last:
                receipt.closed = True
                receipt.writer.commit()
        except (StorageFull, SnapshotDamaged, ValueError):
            receipt.closed = True
            return "snapshot_not_stored"
        return ""

    # --- back on the host's thread ----------------------------------------------------------------------------------

    def _was_opened(self, receipt: _Receipt, failed: str) -> None:
        if receipt is not self._receipt:
            return
        early, receipt.early = receipt.early, []
        if failed:
            self._services.dropped[failed] += 1
            self._receipt = None
            for message, term in early[:1]:
                self._say(message, term=term, next_offset=0, refused=True)
            return
        receipt.opened = True
        receipt.expected = receipt.written
        for message, term in early:
            self._take(receipt, message, term)

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
        receipt.progress_ms = self._services.clock.now_ms()
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
        if receipt is not None and now_ms - receipt.progress_ms >= self._services.options.receive_lease_ms:
            self._services.dropped["snapshot_receipt_expired"] += 1
            self.remove()
        elif self._sweep_at_ms and now_ms >= self._sweep_at_ms:
            self._sweep_at_ms = 0
            store = self._services.store
            self._services.lanes.run(FILES_LANE, lambda: store.sweep(self._group, ""), lambda _: None)

    # --- ending -----------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Give up what is half there."""
        self._close(keep=False)

    def stop(self) -> None:
        """The process ends, or this replica does: its next life may go on with what is there."""
        self._close(keep=True)

    def _close(self, *, keep: bool) -> None:
        receipt, self._receipt = self._receipt, None
        if receipt is None:
            return

        def close() -> None:
            writer = receipt.writer
            if writer is not None and not receipt.closed:
                if keep:
                    writer.leave()
                else:
                    writer.abort()
            receipt.closed = True

        self._services.lanes.run(FILES_LANE, close, lambda _: None)
