"""Sending a snapshot to peers whose next entry is compacted away.

Owns one transfer a peer: chunks read ahead on the files lane, a bounded window of them in memory until they are
answered, sent again after a silence, the whole given up after a longer one. Invariants: memory is at most
`transfers_max` x `transfer_window_chunks` chunks a node; waiting for chunks and waiting for the installation have
clocks of their own (HAZARDS 25); whatever happens the core hears of the end, unless leadership ended first. Must not
know: the peer's log.

A peer answers by how far it has come, so an answer of an earlier, broken-off transfer of the same snapshot makes this
one go on from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from consensus.core.interface import Core, GroupId, ReplicaId, SnapshotMeta
from consensus.runtime.services import FILES_LANE, Services
from consensus.storage.checksum import crc32c
from consensus.storage.errors import SnapshotDamaged
from consensus.transport.interface import SnapshotAnswer, SnapshotChunk


@dataclass(frozen=True, slots=True)
class _Piece:
    offset: int
    data: memoryview
    crc: int

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass(slots=True)
class _Transfer:
    replica: ReplicaId
    meta: SnapshotMeta
    chunks: Iterator[memoryview]
    """Touched on the files lane only."""
    started: bool = False
    ended: bool = False
    reading: bool = False
    read_bytes: int = 0
    read_all: bool = False
    acked: int = 0
    """The peer holds everything below this offset."""
    window: deque[_Piece] = field(default_factory=deque)
    progress_ms: int = 0
    sent_ms: int = 0


def _no_chunks() -> Iterator[memoryview]:
    return iter(())


class SnapshotSending:
    """Of one group, while its replica leads. `send` takes the chunk to the replica's node."""

    def __init__(
        self,
        services: Services,
        *,
        group: GroupId,
        replica: ReplicaId,
        core: Core,
        newest: Callable[[], SnapshotMeta | None],
        send: Callable[[SnapshotChunk], None],
        want_new: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self._services = services
        self._group = group
        self._replica = replica
        self._core = core
        self._newest = newest
        self._send = send
        self._want_new = want_new
        self._changed = changed
        self._transfers: dict[ReplicaId, _Transfer] = {}
        self._retries: dict[ReplicaId, int] = {}
        """Failed transfers, and when the core is told of it."""
        self._away: set[ReplicaId] = set()
        """Peers whose node's connection is closed."""
        self.started = 0
        """Transfers begun in this life."""

    @property
    def active(self) -> bool:
        return bool(self._transfers)

    def kept_for(self) -> int | None:
        """The first log index that a peer under way will need."""
        return min((transfer.meta.index + 1 for transfer in self._transfers.values()), default=None)

    def start(self, replica: ReplicaId) -> None:
        meta = self._newest()
        if replica in self._transfers or replica in self._retries:
            return
        if meta is None or replica in self._away:
            # There is none yet while the one that the log begins with is still being installed here. For a peer that
            # is away no log is held back meanwhile; the core asks again at its first sign of life.
            self._fail_later(replica)
            return
        transfer = _Transfer(replica, meta, _no_chunks())
        self._transfers[replica] = transfer
        self._services.sending.acquire(lambda: self._begin(transfer))

    def _begin(self, transfer: _Transfer) -> bool:
        if transfer.ended:
            return False
        transfer.started = True
        self.started += 1
        transfer.chunks = self._services.store.read(self._group, transfer.meta.snapshot_id)
        transfer.progress_ms = transfer.sent_ms = self._services.clock.now_ms()
        self._read(transfer)
        return True

    # --- reading ahead ----------------------------------------------------------------------------------------------

    def _read(self, transfer: _Transfer) -> None:
        full = len(transfer.window) >= self._services.options.transfer_window_chunks
        if transfer.ended or transfer.reading or transfer.read_all or full:
            return
        transfer.reading = True
        offset, acked, total = transfer.read_bytes, transfer.acked, transfer.meta.size_bytes

        def work() -> _Piece | None:
            """The next piece that the peer lacks, an empty one at the end when it lacks nothing; None when the file
            fails its checks, or ends too early."""
            at = offset
            try:
                for data in transfer.chunks:
                    if at + len(data) > acked:
                        return _Piece(at, data, crc32c(data))
                    at += len(data)
            except SnapshotDamaged:
                return None
            return _Piece(total, memoryview(b""), 0) if at == total else None

        self._services.run(FILES_LANE, work, lambda piece: self._was_read(transfer, piece))

    def _was_read(self, transfer: _Transfer, piece: _Piece | None) -> None:
        transfer.reading = False
        if transfer.ended:
            return
        if piece is None:
            self._services.dropped["snapshot_unreadable"] += 1
            self._want_new()
            self._end(transfer, ok=False)
            return
        transfer.read_bytes = piece.end
        transfer.read_all = piece.end >= transfer.meta.size_bytes
        if piece.end > transfer.acked or not transfer.meta.size_bytes:
            transfer.window.append(piece)
            self._send_piece(transfer, piece)
        self._read(transfer)

    def _send_piece(self, transfer: _Transfer, piece: _Piece) -> None:
        transfer.sent_ms = self._services.clock.now_ms()
        self._send(
            SnapshotChunk(
                sender=self._replica,
                to=transfer.replica,
                term=self._core.status().term,
                incarnation=self._services.incarnation,
                meta=transfer.meta,
                offset=piece.offset,
                data=piece.data,
                crc=piece.crc,
                last=piece.end >= transfer.meta.size_bytes,
            )
        )

    # --- answers and time -------------------------------------------------------------------------------------------

    def answered(self, answer: SnapshotAnswer) -> None:
        transfer = self._transfers.get(answer.sender)
        if transfer is None or not transfer.started or transfer.meta.snapshot_id != answer.snapshot_id:
            self._services.dropped["snapshot_answer_unasked"] += 1
            return
        if answer.refused:
            self._end(transfer, ok=False)
        elif answer.installed:
            self._end(transfer, ok=True)
        elif transfer.acked < answer.next_offset <= transfer.meta.size_bytes:
            transfer.acked = answer.next_offset
            transfer.progress_ms = self._services.clock.now_ms()
            while transfer.window and transfer.window[0].end <= transfer.acked:
                transfer.window.popleft()
            self._read(transfer)

    def tick(self, now_ms: int) -> None:
        for replica in [replica for replica, at_ms in self._retries.items() if now_ms >= at_ms]:
            del self._retries[replica]
            self._core.snapshot_sent(replica, None, ok=False)
            self._changed()
        if not self._transfers:
            return
        match = self._core.status().match
        for transfer in list(self._transfers.values()):
            if match.get(transfer.replica, 0) >= transfer.meta.index:
                self._end(transfer, ok=True)
            elif transfer.started:
                self._watch(transfer, now_ms)

    def _watch(self, transfer: _Transfer, now_ms: int) -> None:
        options = self._services.options
        held = transfer.read_all and transfer.acked >= transfer.meta.size_bytes and not transfer.window
        quiet_ms = now_ms - transfer.progress_ms
        if quiet_ms >= (options.install_timeout_ms if held else options.transfer_timeout_ms):
            self._services.dropped["snapshot_transfer_timeout"] += 1
            self._end(transfer, ok=False)
        elif transfer.window and now_ms - transfer.sent_ms >= options.transfer_resend_ms:
            for piece in transfer.window:
                self._send_piece(transfer, piece)

    def connection(self, replica: ReplicaId, *, closed: bool) -> None:
        """A peer whose connection closed will have forgotten what it received."""
        if not closed:
            self._away.discard(replica)
            return
        self._away.add(replica)
        transfer = self._transfers.get(replica)
        if transfer is not None:
            self._end(transfer, ok=False)

    # --- ending -----------------------------------------------------------------------------------------------------

    def _end(self, transfer: _Transfer, *, ok: bool) -> None:
        self._release(transfer)
        del self._transfers[transfer.replica]
        if ok:
            self._core.snapshot_sent(transfer.replica, transfer.meta, ok=True)
        else:
            self._fail_later(transfer.replica)
        self._changed()

    def _fail_later(self, replica: ReplicaId) -> None:
        """The core would ask again at the next sign of life; a refusing peer must not be asked in a tight circle."""
        self._retries[replica] = self._services.clock.now_ms() + self._services.options.transfer_retry_ms

    def _release(self, transfer: _Transfer) -> None:
        transfer.ended = True
        transfer.window.clear()
        chunks, transfer.chunks = transfer.chunks, _no_chunks()
        close = getattr(chunks, "close", None)
        if close is not None:
            # On its lane: a read may be under way.
            self._services.lanes.run(FILES_LANE, close, lambda _: None)
        if transfer.started:
            self._services.sending.release()

    def stop(self) -> None:
        """Leadership ended: the core has forgotten its peers."""
        transfers, self._transfers = self._transfers, {}
        self._retries.clear()
        for transfer in transfers.values():
            self._release(transfer)
