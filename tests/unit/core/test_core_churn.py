"""Members that come and go at random, with everything that test_core_random.py does to messages, disks and lives.

Disks of a minority forget what was durable on them (RULES W7).

Replicas are added as learners, promoted, removed, replaced, the leader among them; leadership is handed over too.
The safety properties hold after every event, and what is first committed is durable on a quorum of the configuration in
force then. A failing seed replays exactly.
"""

import random
from collections.abc import Iterable

import pytest

from consensus.core.configuration import members_of
from consensus.core.errors import MembershipRefused, NotLeader, TransferRefused
from consensus.core.interface import Configuration, MembershipChange, Role, SnapshotMeta
from tests.unit.core.harness import Host
from tests.unit.core.test_core_random import Chaos

VOTERS_MAX = 5


def agree(configuration: Configuration, replicas: set[int]) -> bool:
    """Counted by hand: of the voters, and while they change of the old ones too, more are among `replicas` than not."""
    parts = (configuration.voters, configuration.outgoing)
    return all(not voters or 2 * len(replicas.intersection(voters)) > len(voters) for voters in parts)


class Churn(Chaos):
    """`hosts` are those that ever lived; the network delivers to all of them. Only replicas that an event touched are
    looked at after it, so that many fit into a second."""

    def __init__(self, seed: int, size: int) -> None:
        super().__init__(seed, size)
        self.seed = seed
        self.next_replica = size + 1
        self.changes: dict[str, int] = {}
        self.active = list(self.hosts)
        """Those that were not told to stop."""
        self.hosts[1].core.tick(300)

    # --- what happens -----------------------------------------------------------------------------------------------

    def event(self) -> None:
        host = self.pick()
        touched = {host.replica: host}
        kind = self.random.choices(
            [
                "deliver",
                "persist",
                "tick",
                "propose",
                "change",
                "compact",
                "transfer",
                "crash",
                "cut",
                "hint",
                "damage",
            ],
            [50, 25, 14, 5, 12, 1, 0.5, 0.4, 0.2, 0.5, 0.3],
        )[0]
        if kind == "deliver":
            for _ in range(self.random.randrange(1, 6)):
                self.deliver_one(touched)
        elif kind == "persist":
            self.persist(host)
        elif kind == "tick":
            host.core.tick(self.random.randrange(1, 30))
        elif kind == "change":
            if host.role is Role.LEADER:
                self.change(host)
        elif kind == "transfer":
            self.transfer(host)
        elif kind == "damage":
            self.damage(host)
        elif kind == "cut":
            self.cut = set() if self.cut else {self.random.choice(list(self.hosts))}
        else:
            self.disturb(host, kind)
        for one in touched.values():
            self.collect(one)
            if one.core.status().removed and one.replica in self.active and len(self.active) > 1:
                self.active.remove(one.replica)
        self.look(touched.values())

    def pick(self) -> Host:
        """Whom something happens to."""
        return self.hosts[self.random.choice(self.active)]

    def persist(self, host: Host) -> None:
        while host.writing and self.random.random() < 0.9:
            host.persist_one()

    def deliver_one(self, touched: dict[int, Host]) -> None:
        if not self.network:
            return
        position = self.random.randrange(0, min(len(self.network), 4))
        message = self.network[position]
        if self.random.random() > 0.05:
            del self.network[position]
        if self.random.random() > 0.05 and not {message.sender, message.to} & self.cut:
            self.hosts[message.to].step(message)
            touched[message.to] = self.hosts[message.to]

    def transfer(self, host: Host) -> None:
        try:
            host.core.transfer(self.random.choice(list(self.hosts)))
        except (NotLeader, TransferRefused):
            pass

    def change(self, host: Host) -> None:
        now = host.core.configuration
        kind = self.random.choice(["add", "promote", "promote", "remove", "replace", "reorder", "drop"])
        voters, learners = list(now.voters), list(now.learners)
        if kind == "add" and len(members_of(now)) < VOTERS_MAX + 2:
            learners.append(self.newcomer(now))
        elif kind == "promote" and learners and len(voters) < VOTERS_MAX:
            voters.append(learners.pop(self.random.randrange(len(learners))))
        elif kind == "remove" and len(voters) > 1:
            voters.remove(self.random.choice(voters))
        elif kind == "replace" and learners:
            voters[self.random.randrange(len(voters))] = learners.pop()
        elif kind == "reorder":
            self.random.shuffle(voters)
        elif kind == "drop" and learners:
            learners.pop()
        whole = {one.replica for one in self.hosts.values() if not one.disk.forgetful}
        if not agree(Configuration(tuple(voters)), whole):
            return  # damage would be no minority's any more, which no group survives
        try:
            host.core.propose_membership(MembershipChange(tuple(voters), tuple(learners)))
        except MembershipRefused:
            kind = "refused"
        self.changes[kind] = self.changes.get(kind, 0) + 1

    def damage(self, host: Host) -> None:
        """Durable entries of a minority are lost, in every configuration that may decide something."""
        whole = {one.replica for one in self.hosts.values() if not one.disk.forgetful} - {host.replica}
        if not all(agree(one.core.configuration, whole) for one in self.hosts.values()):
            return
        host.disk.damage(left=self.random.choice([0, host.core.status().commit_index // 2]))
        host.start()
        self.changes["damage"] = self.changes.get("damage", 0) + 1

    def newcomer(self, configuration: Configuration) -> int:
        """Made by an order that carries a committed configuration: here the one that who applied most has."""
        replica, self.next_replica = self.next_replica, self.next_replica + 1
        furthest = max(self.hosts.values(), key=lambda one: one.core.status().applied_index)
        begins_with = furthest.applied_configuration
        rng = random.Random(self.seed * 1000 + replica)
        self.active.append(replica)
        self.hosts[replica] = Host(replica, begins_with, config=self.config, random=rng)
        return replica

    def compact(self, host: Host) -> None:
        index = host.core.status().applied_index
        done = host.core.entry(index)
        if done is None or host.writing:
            return
        snapshot = SnapshotMeta(index, done.term, host.applied_configuration, f"{host.replica}-{index}")
        keep_from = self.random.randrange(max(1, index - 3), index + 2)
        host.disk.take_snapshot(snapshot, keep_from=keep_from)
        host.core.compact(snapshot, keep_from=keep_from)

    # --- what must hold ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        self.look(self.hosts.values())

    def look(self, hosts: Iterable[Host]) -> None:
        self.checker.check([one.core for one in hosts])
        first = max(hosts, key=lambda one: one.core.status().commit_index)
        status = first.core.status()
        for index in range(self.committed + 1, status.commit_index + 1):
            done = first.core.entry(index)
            holders = {one.replica for one in self.hosts.values() if done is not None and one.disk.held_once(done)}
            if done is not None and not agree(first.core.configuration, holders):
                raise AssertionError(
                    f"entry {index} is committed in {first.core.configuration}, but durable on {holders} only"
                )
        self.committed = max(self.committed, status.commit_index)

    def heal(self) -> Host:
        """Everything works again; returns the leader that comes of it."""
        self.cut = set()
        for _ in range(250):
            for host in list(self.hosts.values()):
                host.persist()
                host.core.tick(10)
                for other in self.hosts:
                    host.core.connection(other, closed=False)
                self.collect(host)
            moving, self.network = self.network, []
            for message in moving:
                self.hosts[message.to].step(message)
            for host in self.hosts.values():
                self.collect(host)
            self.check()
        return max((one for one in self.hosts.values() if one.role is Role.LEADER), key=lambda one: one.term)


@pytest.mark.parametrize("block", range(10))
def test_members_that_come_and_go_break_no_promise(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        churn = Churn(seed, 1 + seed % 5)
        for _ in range(1000):
            churn.event()
        leader = churn.heal()
        end = leader.core.status()
        assert end.configuration is not None
        assert end.commit_index == end.last_index, f"seed {seed}"
        assert not end.configuration.outgoing, f"seed {seed}"
        for replica, host in churn.hosts.items():
            status = host.core.status()
            if replica in members_of(end.configuration):
                assert not status.forgetful, f"seed {seed}, replica {replica}"
                assert (status.last_index, status.commit_index, status.configuration) == (
                    end.last_index,
                    end.commit_index,
                    end.configuration,
                ), f"seed {seed}, replica {replica}"
            else:
                assert status.role is not Role.LEADER, f"seed {seed}, replica {replica}"


def test_the_churn_reaches_what_it_should() -> None:
    done: dict[str, int] = {}
    removed = 0
    for seed in range(6):
        churn = Churn(seed, 3)
        for _ in range(5000):
            churn.event()
        for kind, count in churn.changes.items():
            done[kind] = done.get(kind, 0) + count
        removed += len(churn.hosts) - len(churn.active)
    assert {"add", "promote", "remove", "replace", "drop", "refused", "damage"} <= set(done), done
    assert removed >= 6
