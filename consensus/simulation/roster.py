"""Which replicas there are, where they live, who they are to each other, and which of them are damaged.

Owns what an observer knows who sees everything: homes of all replicas that were ever made, configurations that may
still be in force somewhere, and replicas that may have lost what they acknowledged. Invariant: a replica has one home
for ever. Must not know: how replicas work, faults.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consensus.core.configuration import members_of
from consensus.core.interface import Configuration, GroupId, NodeId, ReplicaId
from consensus.simulation.quorums import minority_at_most

if TYPE_CHECKING:
    from consensus.simulation.node import GroupSpec


@dataclass(frozen=True, slots=True)
class _Placed:
    """A configuration and its entry; term 0 where that is not known."""

    index: int
    term: int
    configuration: Configuration


class Roster:
    def __init__(self, specs: Sequence[GroupSpec]) -> None:
        self._homes: dict[tuple[GroupId, ReplicaId], NodeId] = {}
        self._hosted: dict[tuple[NodeId, GroupId], ReplicaId] = {}
        self._known = {spec.group: [_Placed(0, 0, spec.configuration)] for spec in specs}
        self.impaired: dict[tuple[GroupId, ReplicaId], str] = {}
        """Replicas that may have lost what they acknowledged, and how; until they are whole again, or for ever."""
        for spec in specs:
            for replica, node in spec.nodes.items():
                self.placed(spec.group, replica, node)

    @property
    def groups(self) -> list[GroupId]:
        return list(self._known)

    # --- where replicas live ----------------------------------------------------------------------------------------

    def placed(self, group: GroupId, replica: ReplicaId, node: NodeId) -> None:
        self._homes[group, replica] = node
        self._hosted[node, group] = replica

    def deleted(self, group: GroupId, replica: ReplicaId, node: NodeId) -> None:
        if self._hosted.get((node, group)) == replica:
            del self._hosted[node, group]

    def node_of(self, group: GroupId, replica: ReplicaId) -> NodeId:
        """0 for a replica that was never made."""
        return self._homes.get((group, replica), 0)

    def hosted(self, node: NodeId, group: GroupId) -> ReplicaId:
        """The replica whose data that node's disk holds, or should hold; 0 for none."""
        return self._hosted.get((node, group), 0)

    def nodes_of(self, group: GroupId) -> list[NodeId]:
        """Where its members live."""
        return sorted({self.node_of(group, member) for member in members_of(self.latest(group))} - {0})

    # --- configurations ---------------------------------------------------------------------------------------------

    def configured(self, group: GroupId, index: int, term: int, configuration: Configuration, committed: int) -> None:
        """It is in force somewhere, by the entry at `index`. `committed`: what is known committed in the group."""
        known = [*self._known[group], _Placed(index, term, configuration)]
        settled = max((one.index for one in known if one.index <= committed), default=0)
        self._known[group] = [one for one in known if one.index >= settled]

    def overruled(self, group: GroupId, is_overruled: Callable[[int, int], bool]) -> None:
        """More was committed. `is_overruled(index, term)`: that entry never will be."""
        known = self._known[group]
        if len(known) > 1:
            self._known[group] = [one for one in known if not one.term or not is_overruled(one.index, one.term)]

    def latest(self, group: GroupId) -> Configuration:
        return max(self._known[group], key=lambda one: one.index).configuration

    def relevant(self, group: GroupId) -> list[Configuration]:
        """Those that may still decide something: the last one committed, and all later ones."""
        return [one.configuration for one in self._known[group]]

    # --- damage -----------------------------------------------------------------------------------------------------

    def impair(self, node: NodeId, what: str) -> None:
        """Something durable of its disk was lost: any of its replicas may be hit, also one that was deleted, which is
        found again, and does not run, when its tombstone was lost."""
        for (group, replica), home in self._homes.items():
            if home == node:
                self.impaired[group, replica] = what

    def impaired_on(self, node: NodeId) -> bool:
        return any(self.node_of(group, replica) == node for group, replica in self.impaired)

    def may_damage(self, node: NodeId) -> bool:
        """Whether a minority at most of every group would be damaged, if this node's disk were, too."""
        return all(
            minority_at_most(configuration, self._gone(group, configuration, {node}))
            for group in self.groups
            if self.hosted(node, group)
            for configuration in self.relevant(group)
        )

    def can_decide(self, nodes: Collection[NodeId]) -> bool:
        """Whether whole replicas on these nodes are a quorum of every group."""
        away = set(self._homes.values()) - set(nodes)
        return all(
            minority_at_most(configuration, self._gone(group, configuration, away))
            for group in self.groups
            for configuration in self.relevant(group)
        )

    def _gone(self, group: GroupId, configuration: Configuration, nodes: Collection[NodeId]) -> list[ReplicaId]:
        return [
            member
            for member in members_of(configuration)
            if (group, member) in self.impaired or self.node_of(group, member) in nodes
        ]
