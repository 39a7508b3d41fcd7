"""What faults act on: the cluster and its load, who leads what now, and how to wait until all is whole again.

Owns finding targets and the operators' commands that faults use. Invariants: a role is looked up when the fault
strikes, and drawn among those who have it; nothing is asked more often than the cluster can answer beside its
load. Must not know: plans, verdicts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from paramserver.lab import status
from paramserver.lab.admin import Admin, AdminError, ClusterView
from paramserver.lab.chaos.kinds import Draw
from paramserver.lab.chaos.load import DIGITS, Load
from paramserver.lab.cluster import CATALOGUE_GROUP, WAITING, Cluster
from paramserver.lab.errors import DeadlinePassed, Died, LabError
from paramserver.lab.final import find_model
from paramserver.lab.stopped import stopped

T = TypeVar("T")
BEHIND_MAX = 20
"""Entries; with so many or fewer a replica counts as caught up."""
POLL_S = 0.1
ASK_S = 1.0
CHANGE_S = 60.0
REPAIR_S = 20.0
"""How long a node that came back may take to be whole before its place is given to an empty folder."""


@dataclass(slots=True)
class Scene:
    cluster: Cluster
    load: Load
    links: bool = False
    seams: bool = False
    """Whether the cluster has them."""
    began_s: float = 0.0
    """When the fault in hand began; 0: when it was asked to."""
    notes: list[str] = field(default_factory=list)
    acts: list[float] = field(default_factory=list)
    """When each of several acts of one kind was done, such as the hand-overs of a storm."""

    # --- what faults tell

    def begins(self) -> None:
        """The fault begins now: what was done before were preparations."""
        self.began_s = time.monotonic()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def acts_now(self) -> None:
        self.acts.append(time.monotonic())

    # --- who is who

    def answers(self) -> tuple[status.Answer, ...]:
        return self.cluster.statuses(timeout_s=ASK_S)

    def groups(self) -> tuple[int, ...]:
        """Those that hold parts of the digits."""
        model = find_model(self.answers(), DIGITS)
        return tuple(sorted({shard.group for shard in model.shards if shard.blocks}))

    def leader(self, draw: Draw) -> tuple[int, int]:
        """A group, and the node that leads it."""
        group = draw.choice.choice(self.groups())
        return group, self.leader_of(group)

    def leader_of(self, group: int) -> int:
        return self.cluster.leader_of(group)

    def catalogue_leader(self) -> int:
        return self.leader_of(CATALOGUE_GROUP)

    def members(self) -> list[int]:
        """Nodes that belong to the cluster."""
        return sorted(self.cluster.servers)

    def some_nodes(self, draw: Draw, count: int) -> list[int]:
        return sorted(draw.choice.sample(self.members(), count))

    def majority(self, draw: Draw) -> list[int]:
        return self.some_nodes(draw, len(self.members()) // 2 + 1)

    def follower(self, draw: Draw) -> int:
        """A node that leads nothing: others take over what it led, as before maintenance. `lead_again` ends it."""
        node = draw.choice.choice(self.members())
        self.insist(drain=True, node=node)
        self.until(lambda: node not in self.leaders().values(), f"node {node} to lead nothing")
        return node

    def lead_again(self, node: int) -> None:
        self.insist(drain=True, node=node, undo=True)

    def leaders(self) -> dict[int, int]:
        return status.leaders(self.answers())

    # --- orders

    def admin(self, timeout_s: float = CHANGE_S) -> Admin:
        return Admin(self.cluster.running_endpoints.split(","), timeout_s=timeout_s)

    def wish(self, *, drain: bool = False, **fields: Any) -> None:
        """A request of `paramserver node` or `group`, recorded when this returns."""
        from paramserver.v1 import paramserver_pb2 as pb

        request = pb.ReshapeRequest()
        if drain:
            request.drain.CopyFrom(pb.DrainNode(leaders_only=fields.pop("leaders_only", True), **fields))
        else:
            ((name, value),) = fields.items()
            getattr(request, name).CopyFrom(value)
        try:
            self.admin().wish(request)
        except AdminError as error:
            raise LabError(error.cause, error.hint) from None

    def insist(self, **fields: Any) -> None:
        """`wish`, again while it is refused: a node that was just struck has to answer first."""
        deadline = time.monotonic() + CHANGE_S
        while True:
            try:
                self.wish(**fields)
            except LabError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
            else:
                return

    def view(self) -> ClusterView:
        try:
            return self.admin(10.0).members()
        except AdminError as error:
            raise LabError(error.cause, error.hint) from None

    def until_view(self, condition: Callable[[ClusterView], bool], what: str) -> None:
        self.until(lambda: condition(self.view()), what)

    def until(self, condition: Callable[[], T | None], what: str, timeout_s: float = CHANGE_S) -> T:
        return self.cluster.wait_for(condition, what, timeout_s, POLL_S)

    # --- whole again

    def heal_all(self) -> None:
        """Whatever a fault that failed on the way may have left behind: links, disks, stopped processes."""
        if self.links:
            self.cluster.links.heal()
        for node, server in self.cluster.servers.items():
            if not server.running:
                server.start()
                continue
            server.resume()
            if self.seams:
                self.cluster.faults(node).heal()
        for node, server in list(self.cluster.servers.items()):
            if WAITING in server.output() and "ready node=" not in server.output():
                self.give_place(node)
        for one in self.load.ranks:
            if one.process.running:
                one.process.resume()
            else:
                self.load.restart(one.load, one.rank)

    def await_whole(self, timeout_s: float) -> None:
        """All servers up; every group led, every replica of it running, caught up and trusted. Raises DeadlinePassed
        with what is missing, and Died at once when a server has ended: nobody starts it again meanwhile."""
        deadline = time.monotonic() + timeout_s
        while True:
            if ended := self._ended():
                raise Died(f"not whole again: {ended}", "see its log")
            missing = self.not_whole()
            if not missing:
                return
            if time.monotonic() > deadline:
                raise DeadlinePassed(f"not whole again within {timeout_s:g} s: {missing}", "see the servers' logs")
            time.sleep(POLL_S)

    def not_whole(self) -> str:
        """The first thing that is missing; empty when nothing is."""
        if ended := self._ended():
            return ended
        answers = self.answers()
        nodes = status.reached(answers)
        if len(nodes) < len(self.cluster.servers):
            silent = sorted(self.cluster.servers.keys() - {node.node for node in nodes})
            return f"nodes {silent} give no answer"
        led = status.leaders(answers)
        groups = sorted({state.group for node in nodes for state in node.groups if not state.removed})
        for group in groups:
            if group not in led:
                halt = next((one for one in stopped(answers) if one.group == group), None)
                return f"group {group} has no leader" + (f": {halt}" if halt is not None else "")
            there = next(one for one in nodes if one.node == led[group]).group(group)
            assert there is not None
            for member in there.members:
                one = next((one for one in nodes if one.node == member.node), None)
                state = one.group(group) if one is not None else None
                if one is None or state is None or state.removed:
                    return f"group {group} has a member on node {member.node}, which holds no replica of it"
                for wrong, said in (
                    (state.problem, state.problem),
                    (state.forgetful, "forgetful"),
                    (state.distrusted, state.distrusted),
                    (state.storage_stalled, "its disk stands still"),
                    (one.disk_full, "its disk is full"),
                ):
                    if wrong:
                        return f"group {group} on node {one.node}: {said}"
                if state.applied_index + BEHIND_MAX < there.commit_index:
                    return f"group {group} on node {one.node} is at {state.applied_index} of {there.commit_index}"
        return ""

    def _ended(self) -> str:
        """The first server that does not run, with its last words."""
        for node, server in self.cluster.servers.items():
            if not server.running:
                return f"server {node} ended with {server.code}: {server.last_words().splitlines()[-1]}"
        return ""

    def has_snapshot(self, node: int) -> bool:
        answer = self.cluster.status(node, timeout_s=ASK_S)
        return isinstance(answer, status.NodeSnapshot) and any(state.snapshot_index for state in answer.groups)

    def full_disks(self) -> set[int]:
        """Nodes that say that theirs is."""
        return {node.node for node in status.reached(self.answers()) if node.disk_full}

    def problems_of(self, node: int) -> list[str]:
        """Replicas there that don't run."""
        answer = self.cluster.status(node, timeout_s=ASK_S)
        if isinstance(answer, status.NodeSnapshot):
            return [f"group {state.group}: {state.problem}" for state in answer.groups if state.problem]
        return []

    def give_place(self, node: int) -> None:
        """The documented repair of a folder that is lost: the node's place goes to an empty one."""
        from paramserver.v1 import paramserver_pb2 as pb

        address = self.cluster.join(node)
        self.insist(replace=pb.ReplaceNode(node=node, by=node, address=address))
        self.until_view(lambda view: not any(move.from_node == node for move in view.moves), f"node {node} replaced")
