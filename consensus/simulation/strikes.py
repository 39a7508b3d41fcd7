"""Carrying faults out, and undoing them.

Owns what each kind of fault does to the cluster, the ambushes that wait for an election, and the guard that keeps
damaged disks a minority. Invariants: each strike has its undo, which comes after the fault's time unless everything was
healed before; faults are counted by kind, when they really come. Must not know: how faults are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from consensus.core.interface import Configuration, GroupId, NodeId, ReplicaId
from consensus.simulation.damage import flip_bits, misdirect
from consensus.simulation.faults import DAMAGE_KINDS, LINK_KINDS, Fault, FaultKind, Moment
from consensus.simulation.node import DIRECTORY, SimulatedNode
from consensus.simulation.schedule import MS, stream

if TYPE_CHECKING:
    from consensus.simulation.cluster import Cluster

Undo = Callable[[], None]
AWAY_MS = 1000
"""Longer than an election takes."""
AT_ONCE_MS = 20
"""A process that is restarted at once is away this long."""


def nothing() -> None:
    return None


class Strikes:
    def __init__(self, cluster: Cluster, plan: tuple[Fault, ...]) -> None:
        self._cluster = cluster
        self._plan = plan
        self._ambushes: list[Fault] = []
        self._joint: set[GroupId] = set()
        """Groups that were last seen in a joint configuration."""
        self._for_receivers: list[Fault] = []
        """Lie in wait for pieces of snapshots."""
        self._over = False
        self._number = 0

    def begin(self) -> None:
        for fault in self._plan:
            self._cluster.scheduler.at(fault.at_ms * MS, lambda fault=fault: self._come(fault))  # type: ignore[misc]

    def end(self) -> None:
        """No fault comes any more, and none that came is undone."""
        self._over = True

    def elected(self, group: GroupId) -> None:
        self._spring(group, Moment.ELECTION)

    def configured(self, group: GroupId, configuration: Configuration) -> None:
        """A configuration is in force at some replica that no replica had before: its leader appended it."""
        if configuration.outgoing:
            self._joint.add(group)
            self._spring(group, Moment.JOINT)
        elif group in self._joint:
            self._joint.discard(group)
            self._spring(group, Moment.FINAL)

    def _spring(self, group: GroupId, moment: Moment) -> None:
        fault = next((one for one in self._ambushes if one.leader_of == group and one.moment is moment), None)
        if fault is not None:
            self._ambushes.remove(fault)
            self._cluster.scheduler.after((fault.ambush_ms or 0) * MS, lambda: self._strike(fault))

    def piece_arrives(self, node: NodeId) -> None:
        """A piece of a snapshot reaches that node."""
        if self._for_receivers and not self._over:
            fault = self._for_receivers.pop(0)
            # Now and then what is written of it by then is on its way to the disk.
            delay_us = fault.amount % 3 * fault.amount % (5 * MS)
            self._cluster.scheduler.after(delay_us, lambda: self._strike(replace(fault, nodes=(node,))))

    def _come(self, fault: Fault) -> None:
        if fault.kind is FaultKind.RECEIVER and not self._over:
            self._for_receivers.append(fault)
            return
        if fault.ambush_ms is None:
            self._strike(fault)
        else:
            self._ambushes.append(fault)

    def _strike(self, fault: Fault) -> None:
        if self._over:
            return
        cluster = self._cluster
        hit = list(fault.nodes)
        if fault.leader_of is not None:
            leader = cluster.leader_of(fault.leader_of)
            if leader is not None and leader not in hit:
                hit.append(leader)
        cluster.trace.add("fault", f"{fault.describe()}{f' (hits {hit})' if hit else ''}")
        self._number += 1
        if fault.kind in LINK_KINDS:
            undo = self._strike_links(fault)
        elif fault.kind is FaultKind.SPLIT:
            undo = self._strike_links(replace(fault, kind=FaultKind.CUT, links=self._along_majorities(fault)))
        elif fault.kind is FaultKind.LAST_COPIES:
            undo = self._last_copies(fault)
        else:
            undo = self._strike_nodes(fault, [cluster.nodes[node] for node in hit])
        if undo is None:
            cluster.counts[f"spared {fault.kind.value}"] += 1
            return
        cluster.faults[fault.kind.value] += 1

        def undo_unless_over() -> None:
            if not self._over:
                cluster.trace.add("fault", f"is over: {fault.describe()}")
                undo()

        cluster.scheduler.after(fault.for_ms * MS, undo_unless_over)

    # --- links ------------------------------------------------------------------------------------------------------

    def _strike_links(self, fault: Fault) -> Undo | None:
        network = self._cluster.network
        if not fault.links:
            return None
        if fault.kind is FaultKind.CUT:
            network.cut(fault.links)
            return lambda: network.heal(fault.links)
        if fault.kind is FaultKind.CLOG:
            network.clog(fault.links, fault.amount)
            return lambda: network.clog(fault.links, -fault.amount)
        for a, b in fault.links:
            network.connections.reset(a, b)
        return nothing

    def _along_majorities(self, fault: Fault) -> tuple[tuple[NodeId, NodeId], ...]:
        """Links between who leaves a group and who joins it. Those who stay are on either side, or on both."""
        cluster, group = self._cluster, fault.leader_of
        if group is None:
            return ()
        configuration = cluster.roster.latest(group)
        source = stream(cluster.seed, f"split {fault.at_ms} {fault.amount}")
        sides: tuple[set[NodeId], set[NodeId]] = (set(), set())
        for replica in sorted({*configuration.voters, *configuration.outgoing, *configuration.learners}):
            old = replica in (configuration.outgoing or configuration.voters)
            new = replica in configuration.voters and bool(configuration.outgoing)
            side = source.choice((0, 1)) if old and new else int(not old)
            sides[side].add(cluster.roster.node_of(group, replica))
        one_way = fault.amount % 4 == 0
        links = [(a, b) for a in sides[0] for b in sides[1] if a != b]
        return tuple(sorted(links if one_way else [*links, *((b, a) for a, b in links)]))

    def _last_copies(self, fault: Fault) -> Undo | None:
        """Who is cut off hears of nothing while the others acknowledge; then the leader ends, and the disk of another
        one of them loses something, so that a majority is left which need not know what was acknowledged."""
        cluster, group = self._cluster, fault.leader_of
        lead = cluster.leader_of(group) if group is not None else None
        if group is None or lead is None:
            return None
        others = [node for node in cluster.roster.nodes_of(group) if node != lead]
        if len(others) < 2:
            return None
        source = stream(cluster.seed, f"last copies {fault.at_ms} {fault.amount}")
        source.shuffle(others)
        away, holders = others[: len(others) // 2], others[len(others) // 2 :]
        links = tuple((a, b) for a in cluster.nodes for b in cluster.nodes if (a in away) != (b in away))
        cluster.network.cut(links)
        leader, struck = cluster.nodes[lead], cluster.nodes[holders[0]]

        def strike() -> None:
            cluster.network.heal(links)
            if not struck.running or not cluster.roster.may_damage(struck.node):
                return
            self._damage_node(replace(fault, kind=FaultKind.FLIP), struck)
            leader.kill("killed as the other copy is damaged")
            cluster.scheduler.after(AT_ONCE_MS * MS, lambda: self._unless_over(struck.start))

        cluster.scheduler.after((30 + fault.amount % 200) * MS, lambda: self._unless_over(strike))

        def undo() -> None:
            struck.start()
            leader.start()

        return lambda: cluster.scheduler.after(AWAY_MS * MS, lambda: self._unless_over(undo))

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _strike_nodes(self, fault: Fault, nodes: list[SimulatedNode]) -> Undo | None:
        if fault.kind is FaultKind.CLIENTS:
            self._cluster.application.crash_clients(stream(self._cluster.seed, f"crash {fault.at_ms} {fault.amount}"))
            return nothing
        running = [node for node in nodes if node.running]
        if fault.kind in (FaultKind.TRANSFER, FaultKind.MEMBERS):
            return self._order(fault, running)
        if fault.kind in DAMAGE_KINDS:
            return self._damage(fault, running)
        for node in running:
            self._strike_node(fault, node)
        return (lambda: self._restore(fault, nodes)) if running else None

    def _strike_node(self, fault: Fault, node: SimulatedNode) -> None:
        kind, faults = fault.kind, node.filesystem.faults
        if kind is FaultKind.KILL:
            node.kill("killed")
        elif kind is FaultKind.KILL_POWER:
            node.kill("killed")
            after_ms = AT_ONCE_MS + fault.amount % 150
            self._cluster.scheduler.after(AT_ONCE_MS * MS, lambda: self._unless_over(node.start))
            self._cluster.scheduler.after(after_ms * MS, lambda: self._unless_over(lambda: self._power(node)))
        elif kind is FaultKind.POWER or (kind is FaultKind.RESTART_ALL and fault.amount % 2):
            node.power_cut("struck")
        elif kind is FaultKind.RECEIVER:
            if fault.amount % 2:
                node.power_cut("struck as it is sent a snapshot")
            else:
                node.kill("killed as it is sent a snapshot")
        elif kind is FaultKind.RESTART_ALL:
            node.kill("killed with all others")
        elif kind is FaultKind.POWER_DURING_IO:
            faults.stop_call = faults.calls + fault.amount
        elif kind is FaultKind.SYNC_FAILS:
            faults.fail_syncs = 1
        elif kind is FaultKind.WRITE_FAILS:
            faults.fail_call = faults.calls + fault.amount
        elif kind is FaultKind.FULL_DISK:
            faults.capacity_bytes = node.filesystem.used_bytes() + fault.amount
        elif kind is FaultKind.PAUSE:
            node.pause()
        elif kind is FaultKind.STALL:
            node.stall()
        elif kind is FaultKind.CLOCK:
            node.clock.drift(fault.amount)
        elif kind is FaultKind.CLOCK_JUMP:
            node.clock.jump(fault.amount)
        elif kind is FaultKind.SLOW_DISK:
            node.disk_lag_us += fault.amount * MS
        elif kind is FaultKind.SNAPSHOT:
            node.later(0, "a snapshot is asked for", node.want_snapshots)

    def _unless_over(self, action: Undo) -> None:
        if not self._over:
            action()

    @staticmethod
    def _power(node: SimulatedNode) -> None:
        if node.running:
            node.power_cut("struck after a kill")

    @staticmethod
    def _restore(fault: Fault, nodes: list[SimulatedNode]) -> None:
        for node in nodes:
            if fault.kind is FaultKind.PAUSE:
                node.resume()
            elif fault.kind is FaultKind.STALL:
                node.unstall()
            elif fault.kind is FaultKind.CLOCK:
                node.clock.drift()
            elif fault.kind is FaultKind.SLOW_DISK:
                node.disk_lag_us = max(0, node.disk_lag_us - fault.amount * MS)
            elif fault.kind is FaultKind.FULL_DISK:
                node.filesystem.faults.capacity_bytes = 1 << 62
            elif fault.kind not in (FaultKind.SNAPSHOT, FaultKind.CLOCK_JUMP):
                node.start()

    # --- orders -----------------------------------------------------------------------------------------------------

    def _order(self, fault: Fault, leaders: list[SimulatedNode]) -> Undo | None:
        cluster, group = self._cluster, fault.leader_of
        if group is None or not leaders:
            return None
        if fault.kind is FaultKind.MEMBERS:
            source = stream(cluster.seed, f"members {fault.at_ms} {fault.amount}")
            return (
                nothing if cluster.administrator is not None and cluster.administrator.change(group, source) else None
            )
        voters = cluster.roster.latest(group).voters
        target = voters[fault.amount % len(voters)]
        leaders[-1].later(
            0, f"is told to hand group {group} to {target}", lambda: self._transfer(leaders[-1], group, target)
        )
        if fault.amount % 5 == 0:
            # The one that is to lead dies in the middle (FAULTS 21).
            host = cluster.nodes[cluster.roster.node_of(group, target)]
            delay_us = fault.amount % 40 * MS
            cluster.scheduler.after(delay_us, lambda: self._unless_over(lambda: host.kill("killed as it is to lead")))
            return lambda: host.start()
        return nothing

    def _transfer(self, leader: SimulatedNode, group: GroupId, target: ReplicaId) -> None:
        handle = leader.handles.get(group)
        if handle is not None:
            handle.transfer(target, self._cluster.requests.begin(leader.node, "transfer", lambda _: None))

    # --- damage -----------------------------------------------------------------------------------------------------

    def _damage(self, fault: Fault, nodes: list[SimulatedNode]) -> Undo | None:
        hit = []
        for node in nodes:
            if self._cluster.roster.may_damage(node.node):
                what = self._damage_node(fault, node)
                self._cluster.trace.add("fault", f"n{node.node}: {what or 'nothing there to hit'}")
                hit.append(node)
        return (lambda: self._restore(fault, hit)) if hit else None

    def _damage_node(self, fault: Fault, node: SimulatedNode) -> str:
        source = stream(self._cluster.seed, f"damage {fault.at_ms} {fault.amount} {node.node}")
        if fault.kind is FaultKind.WIPE:
            node.wipe("its disk is wiped")
            return "all of it"
        node.kill("its disk rots")
        if fault.kind is FaultKind.FLIP:
            what = flip_bits(node.filesystem, f"{DIRECTORY}/wal", f"{DIRECTORY}/snapshots", source)
        else:
            what = misdirect(node.filesystem, f"{DIRECTORY}/wal", source)
        if what:
            self._cluster.roster.impair(node.node, what)
        return what
