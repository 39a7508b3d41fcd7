"""An administrator who moves, adds, removes and replaces replicas, as group 0 orders it on real nodes.

Owns where each group's members should be, and the steps towards it: make the replica, let it in as a learner, promote
it, take the old one's vote, delete what is no member any more. Invariants: each look at a group takes one step, decided
from what the leader's committed configuration says, so a step may be lost or repeated; an id is never used twice; a
request has one outcome. Must not know: how membership changes work.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consensus.core.configuration import members_of, next_replica_of
from consensus.core.interface import Configuration, GroupId, Home, MembershipChange, NodeId, ReplicaId, Status
from consensus.runtime.interface import CreateOutcome, Refused
from consensus.simulation.profile import between
from consensus.simulation.quorums import minority_at_most
from consensus.simulation.schedule import MS, stream

if TYPE_CHECKING:
    from consensus.simulation.cluster import Cluster
    from consensus.simulation.node import SimulatedNode

LOOK_MS = (20, 120)
HASTY_LOOK_MS = (1, 20)
HURT_CHANCE = 0.12
HASTY_HURT_CHANCE = 0.01
"""Of a step; who is hasty takes many."""
FIRST_REPLICA = 1 << 16
VOTERS_MAX = 7


@dataclass(slots=True)
class _Goal:
    voters: tuple[ReplicaId, ...]
    learners: tuple[ReplicaId, ...]
    made: dict[ReplicaId, NodeId]
    """New replicas, and where they are to live."""


class Administrator:
    def __init__(self, cluster: Cluster, seed: int, *, hasty: bool = False) -> None:
        """`hasty`: it changes two voters at once if it can, asks leaders that were just elected, and does not wait
        until what it asked for before is committed."""
        self._cluster = cluster
        self._hasty = hasty
        self._random = stream(seed, "administrator")
        self._goals: dict[GroupId, _Goal] = {}
        self._next: dict[GroupId, ReplicaId] = {}
        self._looking = False
        self._hurts = True

    # --- what is asked of it ----------------------------------------------------------------------------------------

    def change(self, group: GroupId, source: random.Random) -> bool:
        """Draw a change of the group's members, and begin with it. False: one is under way, or none is possible. Who is
        hasty drops what is under way; what was made for it is deleted in the end."""
        configuration = self._cluster.roster.latest(group)
        if (group in self._goals and not self._hasty) or configuration.outgoing:
            return False
        goal = self._draw(group, configuration, source)
        if goal is None or not self._can_decide(group, goal.voters):
            return False
        self._begin(group, goal)
        return True

    def elected(self, group: GroupId) -> None:
        """A leader that knows little yet."""
        if self._hasty and group in self._goals:
            self._cluster.scheduler.after(self._random.randrange(5 * MS), lambda: self._look_at(group))

    def settle(self) -> None:
        """Nothing new is begun, and nobody is hurt on purpose any more; what is under way is finished."""
        self._hurts = False

    def repair(self) -> None:
        """Replicas that can't run any more are replaced."""
        roster = self._cluster.roster
        for node in self._cluster.nodes.values():
            if node.needs_an_empty_disk and roster.may_damage(node.node):
                self._cluster.give_empty_disk(node)
        for group in roster.groups:
            configuration = roster.latest(group)
            if group in self._goals or configuration.outgoing:
                continue
            dead = [member for member in sorted(members_of(configuration)) if self._is_lost(group, member)]
            if dead:
                voters = [voter for voter in configuration.voters if voter not in dead]
                made = {self._new_id(group): roster.node_of(group, member) for member in dead}
                learners = tuple(learner for learner in configuration.learners if learner not in dead)
                self._begin(group, _Goal((*voters, *made), learners, made))

    def _is_lost(self, group: GroupId, member: ReplicaId) -> bool:
        """It will never run again."""
        node = self._cluster.roster.node_of(group, member)
        return self._cluster.nodes[node].beyond_repair(group) or self._cluster.roster.hosted(node, group) != member

    def waits_for(self) -> list[str]:
        return [f"members of group {group} to become {goal.voters}" for group, goal in self._goals.items()]

    def _can_decide(self, group: GroupId, voters: Sequence[ReplicaId]) -> bool:
        """Whether a majority of them holds what it acknowledged, and is not dead for now: the quorum arithmetic that
        group 0 does before it orders anything."""
        roster, whole = self._cluster.roster, self._cluster.whole
        hit = [
            voter
            for voter in voters
            if (group, voter) in roster.impaired
            or (whole and roster.node_of(group, voter) not in whole and voter in members_of(roster.latest(group)))
        ]
        return minority_at_most(Configuration(tuple(voters)), hit)

    # --- goals ------------------------------------------------------------------------------------------------------

    def _draw(self, group: GroupId, configuration: Configuration, source: random.Random) -> _Goal | None:
        voters, learners = list(configuration.voters), list(configuration.learners)
        homes = {member: self._cluster.roster.node_of(group, member) for member in members_of(configuration)}
        free = [node for node in self._cluster.nodes if node not in homes.values()]
        made: dict[ReplicaId, NodeId] = {}
        if self._hasty and source.random() < 0.6:
            return self._draw_two(group, configuration, source, free)
        what = source.choice(("replace", "replace", "replace", "add", "learner", "remove", "order"))
        if what in ("add", "learner") and free and len(voters) + len(learners) < VOTERS_MAX:
            made[self._new_id(group)] = source.choice(free)
            (voters if what == "add" else learners).extend(made)
        elif what == "remove" and len(voters) > 1:
            # Often the leader.
            voters.remove(self._leader_of(group, voters) if source.random() < 0.5 else source.choice(voters))
        elif what == "remove" and learners:
            learners.remove(source.choice(learners))
        elif what == "order" and len(voters) > 1:
            source.shuffle(voters)
        elif what == "replace" and (free or len(voters) > 1):
            old = self._leader_of(group, voters) if source.random() < 0.3 else source.choice(voters)
            # Where it lives now, or elsewhere.
            node = source.choice(free) if free and (source.random() < 0.7 or len(voters) == 1) else homes[old]
            made[self._new_id(group)] = node
            voters = [*(voter for voter in voters if voter != old), *made]
            promoted = [learner for learner in learners if source.random() < 0.3]
            voters, learners = voters + promoted, [each for each in learners if each not in promoted]
        else:
            return None
        return _Goal(tuple(voters), tuple(learners), made)

    def _draw_two(
        self, group: GroupId, configuration: Configuration, source: random.Random, free: list[NodeId]
    ) -> _Goal | None:
        """Two voters more, two less, or two others."""
        voters = list(configuration.voters)
        joining = source.sample(free, min(2, len(free))) if source.random() < 0.7 else []
        leaving = source.sample(voters, min(2, len(voters))) if not joining or source.random() < 0.6 else []
        if leaving and source.random() < 0.3:
            leaving[0] = self._leader_of(group, voters)
        made = {self._new_id(group): node for node in joining}
        kept = [voter for voter in voters if voter not in leaving]
        goal = _Goal((*kept, *made), configuration.learners, made)
        size = len(goal.voters) + len(goal.learners)
        return goal if goal.voters and size <= VOTERS_MAX and (joining or leaving) else None

    def _leader_of(self, group: GroupId, voters: list[ReplicaId]) -> ReplicaId:
        node = self._cluster.leader_of(group)
        replica = self._cluster.roster.hosted(node, group) if node is not None else 0
        return replica if replica in voters else voters[0]

    def _new_id(self, group: GroupId) -> ReplicaId:
        floor = next_replica_of(self._cluster.roster.latest(group))
        self._next[group] = max(self._next.get(group, FIRST_REPLICA - 1) + 1, FIRST_REPLICA, floor)
        return self._next[group]

    def _begin(self, group: GroupId, goal: _Goal) -> None:
        self._goals[group] = goal
        self._cluster.trace.add("admin", f"group {group}: voters {goal.voters}, learners {goal.learners}, {goal.made}")
        if not self._looking:
            self._looking = True
            self._look_later()

    # --- steps ------------------------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        span = HASTY_LOOK_MS if self._hasty and self._hurts else LOOK_MS
        self._cluster.scheduler.after(between(self._random, span) * MS, self._look)

    def _look(self) -> None:
        for group in list(self._goals):
            self._look_at(group)
        self._looking = bool(self._goals)
        if self._looking:
            self._look_later()

    def _look_at(self, group: GroupId) -> None:
        node = self._cluster.leader_of(group)
        if node is not None and group in self._goals:
            self._step(group, self._goals[group], self._cluster.nodes[node])

    def _step(self, group: GroupId, goal: _Goal, leader: SimulatedNode) -> None:
        core = leader.handles[group].core
        status = core.status() if core is not None else None
        current = status.configuration if status is not None else None
        if status is None or current is None:
            return
        members = members_of(current)
        if not settled(status, current):
            early = self._hasty and self._hurts and not current.outgoing and members.issuperset(goal.voters)
            if early and current.voters != goal.voters and self._random.random() < 0.5:
                # Too early: it is to be refused.
                self._propose(group, leader, current, goal, goal.voters, current.learners)
            return
        if any(one in members and self._is_lost(group, one) for one in (*goal.voters, *goal.learners)):
            self._cluster.trace.add("admin", f"group {group}: one of {goal.voters} is lost; this change is given up")
            del self._goals[group]
            return
        spent = [one for one in (*goal.voters, *goal.learners) if one not in members and one < current.next_replica]
        if spent:
            # Passed over, or gone: a change that was given up came through after all.
            self._cluster.trace.add("admin", f"group {group}: {spent} can't join any more; this change is given up")
            del self._goals[group]
            return
        if any(learner in current.voters for learner in goal.learners):
            # Promoted by a change that was given up and came through: nobody is demoted.
            self._cluster.trace.add(
                "admin", f"group {group}: of {goal.learners} some vote by now; this change is given up"
            )
            del self._goals[group]
            return
        for replica, node in goal.made.items():
            if replica not in members and not self._make(group, replica, node, goal, leader, current):
                return
        wanted = (*goal.voters, *goal.learners)
        new = tuple(replica for replica in wanted if replica not in members)
        if new:
            self._propose(group, leader, current, goal, current.voters, (*current.learners, *new))
        elif current.voters != goal.voters or set(current.learners) != set(goal.learners):
            unready = [voter for voter in goal.voters if voter not in members]
            if not unready:
                self._propose(group, leader, current, goal, goal.voters, goal.learners)
        elif self._tidy(group, members):
            self._cluster.trace.add("admin", f"group {group} is as it should be: {goal.voters} {goal.learners}")
            self._cluster.counts["membership changes finished"] += 1
            del self._goals[group]

    def _make(
        self,
        group: GroupId,
        replica: ReplicaId,
        node: NodeId,
        goal: _Goal,
        leader: SimulatedNode,
        current: Configuration,
    ) -> bool:
        """Whether the replica is there; else a step towards it is taken."""
        host = self._cluster.nodes[node]
        there = self._cluster.roster.hosted(node, group)
        handle = host.handles.get(group)
        if there == replica and handle is not None and handle.replica == replica:
            return True
        if there and there != replica:
            if there in members_of(current):
                voters = tuple(voter for voter in current.voters if voter != there)
                learners = tuple(learner for learner in current.learners if learner != there)
                self._propose(group, leader, current, goal, voters, learners)
            else:
                self._delete(group, there, host)
            return False
        done = self._cluster.requests.begin

        def made(outcome: CreateOutcome) -> None:
            if isinstance(outcome, Refused) and "must be replaced" in outcome.reason and self._goals.get(group) is goal:
                # The node's disk was damaged, nobody knows where (RULES W7): it takes no replica as it is.
                self._cluster.trace.add(
                    "admin", f"group {group}: node {node} takes no replica; this change is given up"
                )
                del self._goals[group]

        host.later(
            0,
            f"is told to make replica {replica} of group {group}",
            lambda: host.create_replica(group, replica, current, done(node, "creation", made)),
        )
        self._hurt(host)
        return False

    def _propose(
        self,
        group: GroupId,
        leader: SimulatedNode,
        current: Configuration,
        goal: _Goal,
        voters: tuple[ReplicaId, ...],
        learners: tuple[ReplicaId, ...],
    ) -> None:
        if not voters:
            return
        if not self._can_decide(group, voters):
            # Somebody was damaged since this began: it is to be replaced first (RULES I2).
            self._cluster.trace.add("admin", f"group {group}: {voters} could not decide; this change is given up")
            del self._goals[group]
            return
        # Of all who were made, also for an earlier goal: what said where they live may have been truncated.
        homes = tuple(
            Home(replica, self._cluster.roster.node_of(group, replica))
            for replica in sorted({*voters, *learners})
            if replica >= FIRST_REPLICA
        )
        change = MembershipChange(voters, learners, homes)

        def done(outcome: object) -> None:
            reason = f" ({outcome.reason})" if isinstance(outcome, Refused) else ""
            self._cluster.trace.add("admin", f"group {group}: {type(outcome).__name__}{reason}")

        def propose() -> None:
            handle = leader.handles.get(group)
            if not self._can_decide(group, voters):
                # What was asked of a process that stood still comes late, after others were damaged.
                self._cluster.trace.add("admin", f"group {group}: {voters} could not decide any more")
            elif handle is not None:
                handle.propose_membership(change, self._cluster.requests.begin(leader.node, "membership change", done))

        leader.later(0, f"is told: voters {voters}, learners {learners} of group {group}", propose)
        self._hurt(leader, *(self._cluster.nodes[node] for node in goal.made.values()))

    def _delete(self, group: GroupId, replica: ReplicaId, host: SimulatedNode) -> None:
        done = self._cluster.requests.begin
        host.later(
            0,
            f"is told to delete replica {replica} of group {group}",
            lambda: host.delete_replica(group, replica, done(host.node, "deletion", lambda _: None)),
        )
        self._hurt(host)

    def _tidy(self, group: GroupId, members: frozenset[ReplicaId]) -> bool:
        """Whether nothing is left of replicas that are no members; else they are told to go."""
        left = [
            (replica, node)
            for node in self._cluster.nodes.values()
            if (replica := self._cluster.roster.hosted(node.node, group)) and replica not in members
        ]
        for replica, node in left:
            self._delete(group, replica, node)
        return not left

    def _hurt(self, *nodes: SimulatedNode) -> None:
        """Sometimes one of those whom a step concerns crashes right then (FAULTS 22)."""
        if not self._hurts or self._random.random() >= (HASTY_HURT_CHANCE if self._hasty else HURT_CHANCE):
            return
        victim = self._random.choice(nodes)
        away_ms = between(self._random, (20, 600))

        def strike() -> None:
            if self._hurts and victim.running:
                self._cluster.faults["crash in a membership change"] += 1
                if self._random.random() < 0.5:
                    victim.kill("killed in a membership change")
                else:
                    victim.power_cut("struck in a membership change")
                self._cluster.scheduler.after(away_ms * MS, lambda: victim.start() if self._hurts else None)

        self._cluster.scheduler.after(between(self._random, (0, 30)) * MS, strike)


def settled(status: Status, current: Configuration) -> bool:
    """The configuration in force is committed, and no other follows from it."""
    return not current.outgoing and status.commit_index >= status.configuration_index
