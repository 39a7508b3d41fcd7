"""All groups of a node: what comes in, what goes out, and time.

Owns the boundary of an input: whatever happens inside one (a message, a tick, a report of the disk, a proposal), the
groups it touched are settled before it ends, and everything they send leaves together, one call a node and channel.
Invariants: no callback runs outside an input; an exception inside one is a bug and goes to `fatal`; time that a stall
swallowed counts only after what waited meanwhile was looked at, and at most one election timeout of it (RULES C1).
Must not know: asyncio, threads, sockets, disks, what payloads mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from consensus.core.interface import Configuration, Core, GroupId, HardState, NodeId, Randomness, ReplicaId
from consensus.core.raft import RaftCore
from consensus.runtime.group import GroupHandle
from consensus.runtime.interface import Clock, GroupListener, Lanes, LogWriter, StateMachine
from consensus.runtime.options import RuntimeOptions
from consensus.runtime.services import Services, Slots
from consensus.storage.interface import RecoveredGroup, Recovery, SnapshotStore
from consensus.transport.interface import Channel, Envelope, Transport


class NodeRuntime:
    """A `Receiver` for its transport. Everything is called on one thread, the host's."""

    def __init__(
        self,
        *,
        node: NodeId,
        recovery: Recovery,
        writer: LogWriter,
        snapshots: SnapshotStore,
        lanes: Lanes,
        transport: Transport,
        clock: Clock,
        random: Callable[[GroupId], Randomness],
        options: RuntimeOptions | None = None,
        fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`fatal` is told of an exception inside an input (a broken invariant, or a bug of a listener) before it goes
        on upwards: event loops swallow exceptions of callbacks, so it should end the process. Raises `ValueError` for
        options that can't be."""
        options = options or RuntimeOptions()
        problems = options.validate()
        if problems:
            raise ValueError("; ".join(problems))
        self.node = node
        self.incarnation = recovery.incarnation
        self.dropped: Counter[str] = Counter()
        """What was dropped on this node above the transport, by reason."""
        self.stalls = 0
        """Gaps between two ticks above `stall_ms`."""
        self._recovery = recovery
        self._transport = transport
        self._clock = clock
        self._random = random
        self._options = options
        self._fatal = fatal
        self._groups: dict[GroupId, GroupHandle] = {}
        self._dirty: dict[GroupId, GroupHandle] = {}
        self._outbox: dict[tuple[NodeId, Channel], list[Envelope]] = {}
        self._depth = 0
        self._running = False
        self._stopped = False
        self._ticked_ms = clock.now_ms()
        self._owed_ms = 0
        self._services = Services(
            node=node,
            incarnation=recovery.incarnation,
            options=options,
            clock=clock,
            writer=writer,
            store=snapshots,
            lanes=lanes,
            send=self._queue,
            input=self.input,
            dropped=self.dropped,
            writing=Slots(1),
            sending=Slots(options.transfers_max),
        )
        transport.bind(self)

    # --- groups -----------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> Mapping[GroupId, GroupHandle]:
        return self._groups

    def add_group(
        self,
        *,
        group: GroupId,
        replica: ReplicaId,
        configuration: Configuration,
        nodes: Mapping[ReplicaId, NodeId],
        machine: StateMachine,
        listener: GroupListener,
        apply_lane: str = "apply",
    ) -> GroupHandle:
        """A replica of this node. It runs from `start` on (at once when that was called), after the newest snapshot
        is restored; entries that recovery found are applied again as soon as they are known committed. `nodes` says
        where each member lives. Raises `ValueError` for a group that is there already, or members without a node."""
        members = (*configuration.voters, *configuration.learners)
        homeless = [member for member in members if member not in nodes]
        if group in self._groups or homeless or nodes.get(replica) != self.node:
            raise ValueError(
                f"group {group}, replica {replica}: there already, not of this node, or {homeless} nowhere"
            )
        recovered = self._recovery.groups.get(group)
        handle = GroupHandle(
            self._services,
            group=group,
            replica=replica,
            configuration=configuration,
            nodes=nodes,
            machine=machine,
            listener=listener,
            lane=apply_lane,
            mark=lambda: self._mark(group),
            make_core=lambda: self._make_core(group, replica, configuration, recovered),
            recovered=recovered,
            problem=self._recovery.damage or (recovered.damage if recovered is not None else ""),
        )
        self._groups[group] = handle
        if self._running:
            with self.input():
                handle.start()
        return handle

    def _make_core(
        self, group: GroupId, replica: ReplicaId, configuration: Configuration, recovered: RecoveredGroup | None
    ) -> Core:
        return RaftCore(
            group=group,
            replica=replica,
            configuration=configuration,
            hard_state=recovered.hard_state if recovered is not None else HardState(),
            entries=recovered.entries if recovered is not None else (),
            snapshot=recovered.snapshot if recovered is not None else None,
            incarnation=self.incarnation,
            config=self._options.raft,
            random=self._random(group),
        )

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take part. For a node of a new folder only after all members hold its uuid (RULES I2)."""
        with self.input():
            self._running = True
            self._ticked_ms = self._clock.now_ms()
            for handle in self._groups.values():
                handle.start()

    def stop(self) -> None:
        """Take no part any more: what waits for an outcome gets `Unknown`, what the disk or lanes still report is
        ignored. What was handed to the writer may still become durable, which is as good as being late."""
        if self._stopped:
            return
        with self.input():
            for handle in self._groups.values():
                handle.stop()
            self._running = False
            self._stopped = True

    # --- inputs -----------------------------------------------------------------------------------------------------

    @contextmanager
    def input(self) -> Iterator[bool]:
        """Something from outside happens inside. May be nested; at the end of the outermost one everything that it
        caused is carried out. Owners that propose several commands at once wrap them in one, so that they travel
        together. Gives False when the node was stopped or not started: then nothing may be done."""
        self._depth += 1
        try:
            yield self._running
            if self._depth == 1:
                self._settle()
        except Exception as error:
            if self._depth == 1 and self._fatal is not None:
                self._fatal(error)
            raise
        finally:
            self._depth -= 1

    def received(self, node: NodeId, envelopes: Sequence[Envelope]) -> None:
        with self.input() as running:
            if not running:
                self.dropped["not_running"] += len(envelopes)
                return
            for envelope in envelopes:
                handle = self._groups.get(envelope.group)
                if handle is None:
                    # Replicas are made by orders, never by messages (RULES I1).
                    self.dropped["unknown_group"] += 1
                else:
                    handle.received(node, envelope)

    def connection(self, node: NodeId, *, closed: bool) -> None:
        with self.input() as running:
            if not running:
                return
            for handle in self._groups.values():
                handle.connection(node, closed=closed)

    def tick(self) -> None:
        """Time passed. The driver calls it every `tick_ms`, or as near to that as it can."""
        now_ms = self._clock.now_ms()
        elapsed_ms, self._ticked_ms = now_ms - self._ticked_ms, now_ms
        with self.input() as running:
            if running:
                self._pass(elapsed_ms, now_ms)

    def _pass(self, elapsed_ms: int, now_ms: int) -> None:
        timeout_ms = self._options.raft.election_timeout_ms
        owed_ms, self._owed_ms = self._owed_ms, 0
        if elapsed_ms > self._options.stall_ms and not owed_ms:
            # The process slept. What came meanwhile still waits in its sockets: it is read before anybody campaigns.
            self.stalls += 1
            self._owed_ms = min(elapsed_ms, timeout_ms)
            for handle in self._groups.values():
                handle.stalled()
            return
        for handle in self._groups.values():
            owed = 0 if handle.heard else owed_ms
            handle.tick(min(elapsed_ms + owed, timeout_ms), now_ms)

    # --- settling ---------------------------------------------------------------------------------------------------

    def _mark(self, group: GroupId) -> None:
        self._dirty[group] = self._groups[group]

    def _queue(self, node: NodeId, channel: Channel, envelope: Envelope) -> None:
        self._outbox.setdefault((node, channel), []).append(envelope)

    def _settle(self) -> None:
        while self._dirty or self._outbox:
            while self._dirty:
                group = next(iter(self._dirty))
                self._dirty.pop(group).settle()
            outbox, self._outbox = self._outbox, {}
            for (node, channel), envelopes in outbox.items():
                self._transport.send(node, channel, envelopes)
