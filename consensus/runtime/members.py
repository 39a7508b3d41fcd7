"""Who a group's members are, as one replica sees it, and what follows from that for its owner.

Owns the configuration in force here and what the owner heard of it. Invariants: the homes follow it at once; the owner
hears of each one, and again when it is committed. Must not know: how configurations come about, who leads.
"""

from __future__ import annotations

from collections.abc import Collection

from consensus.core.configuration import members_of
from consensus.core.interface import Configuration, NodeId, ReplicaId, Status
from consensus.runtime.homes import Homes
from consensus.runtime.interface import OnConfiguration


class Members:
    """`on_configuration` gets the configuration and whether it is committed."""

    __slots__ = ("_homes", "_in_force", "_on_configuration", "configuration")

    def __init__(self, configuration: Configuration, homes: Homes, on_configuration: OnConfiguration | None) -> None:
        self.configuration = configuration
        """The one in force here."""
        self._homes = homes
        self._on_configuration = on_configuration
        self._in_force: tuple[int, bool] | None = None
        """(index, committed) of the configuration that the owner knows."""

    def follow(self, status: Status) -> None:
        """Tell the owner of the configuration in force, and know where its members live."""
        configuration, index = status.configuration, status.configuration_index
        if configuration is None:
            return
        in_force = (index, status.commit_index >= index)
        if in_force == self._in_force and configuration == self.configuration:
            return
        self._in_force = in_force
        if configuration != self.configuration:
            self.configuration = configuration
            self._homes.follow(configuration)
        if self._on_configuration is not None:
            self._on_configuration(configuration, in_force[1])

    def preferred(self, replica: ReplicaId, avoided: Collection[NodeId]) -> ReplicaId:
        """Who should lead, as this replica may say (RULES C6): the first voter, or the first that does not live on a
        node to avoid; this one when there is none."""
        voters = self.configuration.voters
        if not avoided:
            return voters[0]
        return next((voter for voter in voters if self._homes.node_of(voter) not in avoided), replica)

    def without(self, replica: ReplicaId) -> dict[ReplicaId, NodeId]:
        """The others, and where they live."""
        members = members_of(self.configuration) - {replica}
        return {member: self._homes.node_of(member) for member in sorted(members)}
