"""Sending a snapshot to peers whose next entry is compacted away, or who ask for one.

Owns one transfer a peer: chunks read ahead on the files lane, paced, a bounded window of them in memory until they are
answered, sent again after a silence, the whole given up after a longer one; and, for a while after it broke off, which
snapshot it was and how far it came, so that the peer goes on from there (HAZARDS 25). Invariants: memory is at most
`transfers_max` x `transfer_window_chunks` chunks a node; waiting for chunks and waiting for the installation have
clocks of their own; whatever happens the core hears of the end, unless leadership ended first. Must not know: the
peer's log.

A transfer is (snapshot id, offset). Where it goes on is for the peer to say: it answers by how far it has come, in this
life or, from a file that it checked, in an earlier one. One that holds all is asked now and then, by the end sent
again, until it is installed: it may have ended before that, and a next life says nothing of itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from consensus.core.interface import Core, GroupId, ReplicaId, SnapshotMeta
from consensus.runtime.pacing import Pace
from consensus.runtime.services import FILES_LANE, Services
from consensus.storage.checksum import crc32c
from consensus.storage.errors import SnapshotDamaged, UnknownFormat
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
    pace: Pace
    chunks: Iterator[memoryview]
    """From `read_bytes` on. Touched on the files lane only."""
    asked: bool = False
    """By the peer, whose log lacks nothing: only its own word ends it."""
    started: bool = False
    ended: bool = False
    reading: bool = False
    position: int = 0
    """Rises with each jump; what was read for an earlier one is dropped."""
    read_bytes: int = 0
    acked: int = 0
    """The peer held everything below this offset, as far as it said."""
    said: int = 0
    """What its last answer said it holds; it may be less, in another life or after damage on the way."""
    incarnation: int = 0
    """The life of the peer that answered last."""
    window: deque[_Piece] = field(default_factory=deque)
    progress_ms: int = 0
    sent_ms: int = 0

    @property
    def read_all(self) -> bool:
        return self.read_bytes >= self.meta.size_bytes


@dataclass(frozen=True, slots=True)
class _BrokenOff:
    meta: SnapshotMeta
    acked: int
    until_ms: int


def _no_chunks() -> Iterator[memoryview]:
    return iter(())


class SnapshotSending:
    """Of one group, while its replica leads. `send` takes the chunk to the replica's node. `idle`: nothing is being
    sent any more, older files may go."""

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
        idle: Callable[[], None],
    ) -> None:
        self._services = services
        self._group = group
        self._replica = replica
        self._core = core
        self._newest = newest
        self._send = send
        self._want_new = want_new
        self._changed = changed
        self._idle = idle
        self._transfers: dict[ReplicaId, _Transfer] = {}
        self._broken_off: dict[ReplicaId, _BrokenOff] = {}
        self._retries: dict[ReplicaId, int] = {}
        """Failed transfers, and when the core is told of it."""
        self._away: set[ReplicaId] = set()
        """Peers whose node's connection is closed."""
        self._held_back = False
        self.started = 0
        """Transfers begun in this life."""

    @property
    def active(self) -> bool:
        """Files are being read, or kept for a peer that may go on."""
        return bool(self._transfers or self._broken_off)

    def kept_for(self) -> int | None:
        """The first log index that a peer under way will need."""
        sent = [transfer.meta.index for transfer in self._transfers.values()]
        broken_off = [each.meta.index for each in self._broken_off.values()]
        return min((index + 1 for index in (*sent, *broken_off)), default=None)

    def start(self, replica: ReplicaId) -> None:
        """The core says that this peer needs one."""
        if replica in self._transfers or replica in self._retries:
            return
        meta = self._newest()
        if meta is None or self._held_back or replica in self._away:
            # There is none yet while the one that the log begins with is still being installed here. For a peer that
            # is away no log is held back longer; the core asks again at its first sign of life.
            self._fail_later(replica)
            return
        self._begin_soon(replica, meta, asked=False)

    def asked(self, replica: ReplicaId, at_least: int) -> None:
        """The peer itself wants one of at least that index (it asks again while it gets none)."""
        present = self._transfers.get(replica)
        if present is not None and not (present.asked and present.meta.index < at_least):
            present.asked |= present.meta.index >= at_least
            return
        if present is not None:
            # It has done with that one, and its last word was lost.
            self._end(present, ok=True)
        meta = self._newest()
        if self._core.status().applied_index < at_least:
            return  # The state here does not go that far yet; it will be asked for again.
        if meta is None or meta.index < at_least:
            self._want_new()
        else:
            self._begin_soon(replica, meta, asked=True)

    def _begin_soon(self, replica: ReplicaId, meta: SnapshotMeta, *, asked: bool) -> None:
        broken_off = self._broken_off.pop(replica, None)
        acked = 0
        if broken_off is not None and self._can_go_on(broken_off.meta, meta, asked=asked):
            meta, acked = broken_off.meta, broken_off.acked
        pace = Pace(self._services.options.transfer_bytes_per_s)
        transfer = _Transfer(replica, meta, pace, _no_chunks(), asked=asked, read_bytes=acked, acked=acked, said=acked)
        self._transfers[replica] = transfer
        self._services.sending.acquire(lambda: self._begin(transfer))

    def _can_go_on(self, before: SnapshotMeta, newest: SnapshotMeta, *, asked: bool) -> bool:
        """An older snapshot is of use while the log above it is still here."""
        if before == newest:
            return True
        return not asked and self._core.status().first_index <= before.index + 1

    def _begin(self, transfer: _Transfer) -> bool:
        if transfer.ended:
            return False
        transfer.started = True
        self.started += 1
        transfer.progress_ms = transfer.sent_ms = self._services.clock.now_ms()
        self._jump(transfer, transfer.acked)
        return True

    # --- reading ahead ----------------------------------------------------------------------------------------------

    def _jump(self, transfer: _Transfer, offset: int) -> None:
        """Go on from there."""
        self._close(transfer)
        transfer.position += 1
        transfer.window.clear()
        transfer.read_bytes = offset
        transfer.reading = False
        if not transfer.read_all or not transfer.meta.size_bytes:
            transfer.chunks = self._services.store.read(self._group, transfer.meta.snapshot_id, offset)
            self._read(transfer)

    def _read(self, transfer: _Transfer) -> None:
        full = len(transfer.window) >= self._services.options.transfer_window_chunks
        done = transfer.read_all and (transfer.window or transfer.meta.size_bytes)
        if transfer.ended or not transfer.started or transfer.reading or done or full:
            return
        if not transfer.pace.may(self._services.clock.now_ms()):
            return  # A tick goes on.
        transfer.reading = True
        chunks, offset, total, position = (
            transfer.chunks,
            transfer.read_bytes,
            transfer.meta.size_bytes,
            transfer.position,
        )

        def work() -> _Piece | None:
            """The next piece, an empty one of an empty snapshot; None when the file fails its checks or ends early."""
            try:
                data = next(chunks, None)
            except (SnapshotDamaged, UnknownFormat):
                return None
            if data is None:
                return _Piece(offset, memoryview(b""), 0) if offset == total else None
            return _Piece(offset, data, crc32c(data))

        self._services.run(FILES_LANE, work, lambda piece: self._was_read(transfer, piece, position))

    def _was_read(self, transfer: _Transfer, piece: _Piece | None, position: int) -> None:
        if transfer.ended or transfer.position != position:
            return
        transfer.reading = False
        if piece is None:
            self._services.dropped["snapshot_unreadable"] += 1
            self._want_new()
            self._end(transfer, ok=False, resumable=False)
            return
        transfer.read_bytes = piece.end
        transfer.pace.took(len(piece.data), self._services.clock.now_ms())
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
        if answer.incarnation < transfer.incarnation or answer.next_offset > transfer.meta.size_bytes:
            self._services.dropped["snapshot_answer_stale"] += 1
        elif answer.refused:
            self._end(transfer, ok=False, resumable=False)
        elif answer.installed:
            self._end(transfer, ok=True)
        else:
            self._held(transfer, answer)

    def _held(self, transfer: _Transfer, answer: SnapshotAnswer) -> None:
        held = transfer.said = answer.next_offset
        new_life = answer.incarnation > transfer.incarnation
        transfer.incarnation = answer.incarnation
        if held > transfer.acked or new_life:
            transfer.acked = held
            transfer.progress_ms = self._services.clock.now_ms()
        elif held < transfer.acked:
            return  # Of before, or asked for again: if the latter, nothing more comes, and it is sent again then.
        while transfer.window and transfer.window[0].end <= held:
            transfer.window.popleft()
        at = transfer.window[0].offset if transfer.window else transfer.read_bytes
        if at != held and (new_life or held > at):
            self._jump(transfer, held)
        else:
            self._read(transfer)

    def tick(self, now_ms: int) -> None:
        for replica in [replica for replica, at_ms in self._retries.items() if now_ms >= at_ms]:
            del self._retries[replica]
            self._core.snapshot_sent(replica, None, ok=False)
            self._changed()
        expired = [replica for replica, broken_off in self._broken_off.items() if now_ms >= broken_off.until_ms]
        for replica in expired:
            del self._broken_off[replica]
        if expired and not self.active:
            self._idle()
        if not self._transfers:
            return
        match = self._core.status().match
        for transfer in list(self._transfers.values()):
            if not transfer.asked and match.get(transfer.replica, 0) >= transfer.meta.index:
                self._end(transfer, ok=True)
            elif transfer.started:
                self._watch(transfer, now_ms)

    def _watch(self, transfer: _Transfer, now_ms: int) -> None:
        options = self._services.options
        quiet_ms = now_ms - transfer.progress_ms
        if quiet_ms >= self._patience_ms(transfer):
            self._services.dropped["snapshot_transfer_timeout"] += 1
            self._end(transfer, ok=False)
        elif now_ms - transfer.sent_ms < options.transfer_resend_ms:
            self._read(transfer)
        elif transfer.acked >= transfer.meta.size_bytes and not transfer.window:
            self._ask(transfer)
        else:
            self._send_again(transfer)

    def _ask(self, transfer: _Transfer) -> None:
        """By the last byte: the answer says what the peer holds."""
        self._jump(transfer, max(transfer.meta.size_bytes - 1, 0))

    def _send_again(self, transfer: _Transfer) -> None:
        if transfer.window and transfer.said < transfer.window[0].offset:
            transfer.acked = transfer.said
            self._jump(transfer, transfer.said)
        for piece in transfer.window:
            self._send_piece(transfer, piece)
        self._read(transfer)

    def _patience_ms(self, transfer: _Transfer) -> int:
        """How long no progress is fine: installing takes its time, and is another thing than a chunk."""
        options = self._services.options
        held = transfer.acked >= transfer.meta.size_bytes
        return options.install_timeout_ms if held else options.transfer_timeout_ms

    def connection(self, replica: ReplicaId, *, closed: bool) -> None:
        """What was on the way to a peer whose connection closed is lost; what it holds is not."""
        if not closed:
            self._away.discard(replica)
            if replica in self._retries:
                self._retries[replica] = self._services.clock.now_ms()
            return
        self._away.add(replica)
        transfer = self._transfers.get(replica)
        if transfer is not None:
            self._end(transfer, ok=False)

    # --- ending -----------------------------------------------------------------------------------------------------

    def _end(self, transfer: _Transfer, *, ok: bool, resumable: bool = True) -> None:
        self._release(transfer)
        del self._transfers[transfer.replica]
        if ok:
            self._core.snapshot_sent(transfer.replica, transfer.meta, ok=True)
        else:
            if resumable and transfer.started:
                until_ms = self._services.clock.now_ms() + self._services.options.transfer_resume_ms
                self._broken_off[transfer.replica] = _BrokenOff(transfer.meta, transfer.acked, until_ms)
            self._fail_later(transfer.replica)
        if not self.active:
            self._idle()
        self._changed()

    def _fail_later(self, replica: ReplicaId) -> None:
        """The core would ask again at the next sign of life; a refusing peer must not be asked in a tight circle."""
        self._retries[replica] = self._services.clock.now_ms() + self._services.options.transfer_retry_ms

    def _release(self, transfer: _Transfer) -> None:
        transfer.ended = True
        transfer.window.clear()
        self._close(transfer)
        if transfer.started:
            self._services.sending.release()

    def _close(self, transfer: _Transfer) -> None:
        chunks, transfer.chunks = transfer.chunks, _no_chunks()
        close = getattr(chunks, "close", None)
        if close is not None:
            # On its lane: a read may be under way.
            self._services.lanes.run(FILES_LANE, close, lambda _: None)

    def hold(self, *, held: bool) -> None:
        """While the state here is in doubt nobody is filled with it but who asks, knowing its own to be wrong."""
        self._held_back = held
        for transfer in list(self._transfers.values()):
            if held and not transfer.asked:
                self._end(transfer, ok=False, resumable=False)

    def give_up(self) -> None:
        """What is being sent is not to be trusted. The core asks again."""
        for transfer in list(self._transfers.values()):
            self._end(transfer, ok=False, resumable=False)
        self._broken_off.clear()

    def stop(self) -> None:
        """Leadership ended: the core has forgotten its peers."""
        transfers, self._transfers = self._transfers, {}
        self._retries.clear()
        self._broken_off.clear()
        for transfer in transfers.values():
            self._release(transfer)
