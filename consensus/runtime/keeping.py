"""A group's whole states at one replica: how written, sent, received and rebuilt ones meet.

Owns which snapshot is the newest durable one, which messages about snapshots are welcome, the way of one that arrived
(offered to the core, or to the rebuilding of a distrusted state; loaded when its record is durable), and when older
files may go. Invariants: nothing is deleted while anything reads a snapshot or is about to record one; a file that was
recorded and cannot be loaded stops the node, because neither the old state nor the new one can be had; a state that is
distrusted is sent to nobody. Must not know: the log's way, commands, who waits for what is applied.

Made when the replica begins to run. All of it is called inside an input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from consensus.core.configuration import members_of, next_replica_of
from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, Core, GroupId, ReplicaId, Role, SnapshotMeta, SnapshotOffer
from consensus.runtime.backlog import Backlog
from consensus.runtime.interface import APPLY_LANE
from consensus.runtime.machine import MachineHost, Unreadable
from consensus.runtime.rebuilding import Rebuilding
from consensus.runtime.receiving import SnapshotReceiving
from consensus.runtime.sending import SnapshotSending
from consensus.runtime.services import FILES_LANE, Services
from consensus.runtime.snapshots import SnapshotWriting
from consensus.storage.errors import SnapshotDamaged, UnknownFormat
from consensus.transport.interface import SnapshotAnswer, SnapshotChunk, SnapshotRequest, TransportMessage

_log = logging.getLogger(__name__)


class SnapshotKeeping:
    """Of one replica. `fit`: whether its state is to be trusted changed; `restored`: its state is the one at that
    index; `resume`: have apply go on with what waits; `changed`: the core may have something to do."""

    def __init__(
        self,
        services: Services,
        *,
        group: GroupId,
        replica: ReplicaId,
        core: Core,
        machine: MachineHost,
        backlog: Backlog,
        newest: SnapshotMeta | None,
        configuration: Callable[[], Configuration],
        send: Callable[[TransportMessage], None],
        fit: Callable[[], None],
        restored: Callable[[int], None],
        resume: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self._services = services
        self._group = group
        self._replica = replica
        self._core = core
        self._machine = machine
        self._backlog = backlog
        self._configuration = configuration
        self._send = send
        self._on_restored = restored
        self._changed = changed
        self.newest = newest
        """The newest snapshot whose record is durable."""
        self._installing = 0
        self.sending = SnapshotSending(
            services,
            group=group,
            replica=replica,
            core=core,
            newest=lambda: None if self.distrusted else self.newest,
            send=send,
            want_new=self.want,
            changed=changed,
            idle=self._tidy,
        )
        self.writing = SnapshotWriting(
            services,
            group=group,
            core=core,
            machine=machine,
            kept_for=self.sending.kept_for,
            recorded=self._recorded,
            changed=changed,
            resume=resume,
        )
        self.receiving = SnapshotReceiving(services, group=group, replica=replica, answer=send, offer=self._offer)
        self.rebuilding = Rebuilding(
            services,
            group=group,
            replica=replica,
            core=core,
            machine=machine,
            writing=self.writing,
            send=send,
            fit=fit,
            rebuilt=self._rebuilt,
            resume=resume,
            handed_out=newest.index if newest is not None else 0,
        )

    @property
    def distrusted(self) -> str:
        """Why this replica's state is not to be trusted; empty when it is."""
        return self.rebuilding.reason

    @property
    def active(self) -> bool:
        """Something here waits for time to pass."""
        return self.sending.active or self.receiving.active or self.writing.active or self.rebuilding.active

    def tick(self, now_ms: int) -> None:
        self.sending.tick(now_ms)
        self.receiving.tick(now_ms)
        self.writing.tick(now_ms)
        within_ms = self._services.options.rebuild_ask_ms
        self.rebuilding.tick(now_ms, receiving=self.receiving.moves(now_ms, within_ms=within_ms))

    def stop(self) -> None:
        self.receiving.stop()
        self.writing.stop()

    # --- what the owner wants -----------------------------------------------------------------------------------------

    def want(self) -> None:
        """Write one as soon as the node has time for it."""
        self.writing.want()

    def hold(self, *, held: bool) -> None:
        """See `GroupHandle.hold_snapshots`."""
        self.sending.hold(held=held)
        self.writing.releases_log = not held

    def distrust(self, reason: str) -> None:
        """See `GroupHandle.distrust`."""
        self.rebuilding.begin(reason)
        self.sending.give_up()

    # --- messages of peers --------------------------------------------------------------------------------------------

    def answered(self, answer: SnapshotAnswer) -> None:
        if answer.to == self._replica and answer.term <= self._core.status().term:
            self.sending.answered(answer)

    def asked(self, request: SnapshotRequest) -> None:
        status = self._core.status()
        expected = status.role is Role.LEADER and request.term == status.term and request.sender in status.match
        if expected and not self.distrusted:
            self.sending.asked(request.sender, request.index)
        else:
            self._services.dropped["snapshot_request_unexpected"] += 1

    def chunk(self, message: SnapshotChunk) -> None:
        status, configuration = self._core.status(), self._configuration()
        known = members_of(configuration)
        # A leader may have joined after the end of this log: then its id is one that was never used here.
        stranger = message.sender not in known and message.sender < next_replica_of(configuration)
        if message.to != self._replica or message.sender == self._replica or stranger:
            self._services.dropped["snapshot_chunk_from_stranger"] += 1
            return
        if message.term != status.term or status.leader not in (0, message.sender):
            # Of a leader of the past; or of a new one, whose heartbeat will say so before the chunk comes again.
            self._services.dropped["snapshot_chunk_of_another_term"] += 1
            return
        if self.rebuilding.has_arrived:
            self._services.dropped["snapshot_chunk_not_now"] += 1
            return
        if status.commit_index >= message.meta.index and not self.rebuilding.wants(message.meta):
            self._say_held(message, installed=not self._installing)
            return
        self.receiving.chunk(message, term=status.term)

    def _offer(self, meta: SnapshotMeta, chunk: SnapshotChunk) -> None:
        """A whole snapshot of a leader's lies here as a file."""
        if self.rebuilding.wants(meta):
            self.rebuilding.arrived(meta, chunk)
            if self.rebuilding.has_arrived:
                # The log lacks nothing, so the sender need not wait until the state is loaded.
                self._say_held(chunk, installed=True)
            self._changed()
            return
        self._core.step(
            SnapshotOffer(
                sender=chunk.sender, to=self._replica, term=chunk.term, incarnation=chunk.incarnation, meta=meta
            )
        )
        # The core's own answer says so once it is durable.
        self._changed()

    def _say_held(self, chunk: SnapshotChunk, *, installed: bool) -> None:
        """All of it; until it is also installed the sender keeps what this replica may still need."""
        answer = SnapshotAnswer(
            sender=self._replica,
            to=chunk.sender,
            term=self._core.status().term,
            incarnation=self._services.incarnation,
            snapshot_id=chunk.meta.snapshot_id,
            next_offset=chunk.meta.size_bytes,
            installed=installed,
            index=chunk.meta.index,
        )
        self._send(answer)

    # --- one that the core took ---------------------------------------------------------------------------------------

    def install(self) -> None:
        """Its record is on the way to the disk; `load` follows."""
        self._installing += 1

    def load(self, meta: SnapshotMeta) -> None:
        """The record of an installed snapshot is durable: put it into the state machine."""
        store = self._services.store
        self.writing.cancel()

        def loaded(unreadable: Unreadable | None) -> None:
            if unreadable is not None:
                # Verified when it was written; now neither the old state nor the new one can be had.
                raise InvariantViolated(
                    f"group {self._group}: snapshot {meta.snapshot_id} can't be installed: {unreadable.problem}"
                )
            self._installing -= 1
            self._backlog.reached(meta.index)
            self.newest = meta
            self._core.installed(meta)
            self.writing.restored(meta)
            self._services.writer.release(self._group, meta.index + 1)
            self.rebuilding.replaced(meta)
            self._on_restored(meta.index)
            self._tidy()
            self._changed()

        self._services.run(APPLY_LANE, lambda: self._machine.restore(store, meta), loaded)

    # --- the newest, and older ones -----------------------------------------------------------------------------------

    def _recorded(self, meta: SnapshotMeta) -> None:
        """A snapshot of this replica's own is durable, its record too."""
        self.newest = meta
        self._tidy()

    def _rebuilt(self, meta: SnapshotMeta) -> None:
        self._on_restored(meta.index)
        self._changed()

    def _tidy(self) -> None:
        """Remove older snapshot files, when nothing reads or is about to record one."""
        busy = self._installing or self.writing.active or self.sending.active or self.receiving.active
        if busy or self.newest is None:
            return
        keep, store = self.newest.snapshot_id, self._services.store

        def delete() -> str:
            try:
                store.delete_older(self._group, keep)
            except (SnapshotDamaged, UnknownFormat) as error:
                return str(error)
            return ""

        self._services.run(FILES_LANE, delete, self._tidied)

    def _tidied(self, problem: str) -> None:
        if problem:
            # The state in memory is sound: write it again.
            self._services.dropped["snapshot_unreadable"] += 1
            _log.error("group %d: the newest snapshot rotted, another is written: %s", self._group, problem)
            self.want()
