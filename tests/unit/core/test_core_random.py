"""Cores on a network that loses, doubles and reorders, on disks that lag and crash; the safety properties after every
event.

A failing seed replays exactly: the seed is the test's parameter.
"""

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.core.errors import Busy, InvariantViolated, NotLeader
from consensus.core.interface import AnyMessage, Configuration, HardState, Role, SnapshotMeta
from consensus.core.invariants import SafetyChecker, quorums_overlap
from consensus.core.quorum import has_quorum
from consensus.core.raft import RaftConfig
from tests.unit.core.harness import Cluster, Disk, Host, configuration_entry, entry, follower, offer

SMALL = RaftConfig(
    inflight_messages_max=4,
    append_bytes_max=12,
    inflight_bytes_max=40,
    probe_bytes_max=6,
    persist_bytes_max=15,
    committed_bytes_max=10,
    uncommitted_bytes_max=60,
)


class Chaos:
    config = SMALL

    def __init__(self, seed: int, size: int) -> None:
        self.random = random.Random(seed)
        configuration = Configuration(tuple(range(1, size + 1)))
        self.hosts = {
            replica: Host(replica, configuration, config=self.config, random=random.Random(seed * 10 + replica))
            for replica in configuration.voters
        }
        self.network: list[AnyMessage] = []
        self.cut: set[int] = set()
        self.checker = SafetyChecker(1)
        self.committed = 0
        self.proposed = 0
        self.installed = 0

    def collect(self, host: Host) -> None:
        host.drain()
        self.network += host.sent
        host.sent = []
        for replica in host.snapshots_asked:
            # The host streams its newest snapshot; the transfer takes one event and may fail.
            snapshot = host.disk.snapshot
            ok = snapshot is not None and self.random.random() < 0.7 and not {replica, host.replica} & self.cut
            # Who was deposed meanwhile must not send it in the new leader's term.
            ok = ok and host.role is Role.LEADER
            if ok and snapshot is not None:
                life = host.disk.incarnation
                receiver = self.hosts[replica]
                receiver.step(offer(receiver, snapshot, sender=host.replica, term=host.term, incarnation=life))
                self.installed += 1
            host.core.snapshot_sent(replica, snapshot, ok=ok)
        host.snapshots_asked = []

    def event(self) -> None:
        host = self.hosts[self.random.choice(list(self.hosts))]
        kind = self.random.choices(
            ["deliver", "tick", "persist", "propose", "crash", "cut", "compact", "hint"],
            [50, 20, 25, 8, 0.5, 0.5, 1, 0.5],
        )[0]
        if kind == "deliver" and self.network:
            position = self.random.randrange(0, min(len(self.network), 6))
            message = self.network[position]
            if self.random.random() > 0.2:
                del self.network[position]
            if self.random.random() > 0.1 and not {message.sender, message.to} & self.cut:
                self.hosts[message.to].step(message)
        elif kind == "tick":
            host.core.tick(self.random.randrange(1, 40))
        elif kind == "persist" and host.writing:
            host.persist_one()
        elif kind == "cut":
            self.cut = set() if self.cut else {self.random.choice(list(self.hosts))}
        else:
            self.disturb(host, kind)
        for one in self.hosts.values():
            self.collect(one)
        self.check()

    def disturb(self, host: Host, kind: str) -> None:
        if kind == "propose":
            self.propose(host)
        elif kind == "crash":
            # Batches in the queue may have reached the disk, oldest first, or not.
            for ready in host.writing[: self.random.randrange(0, len(host.writing) + 1)]:
                host.disk.write(ready)
            host.start()
        elif kind == "compact":
            self.compact(host)
        elif kind == "hint":
            host.core.connection(self.random.choice(list(self.hosts)), closed=self.random.random() < 0.5)

    def check(self) -> None:
        self.checker.check([one.core for one in self.hosts.values()])
        first = max(self.hosts.values(), key=lambda one: one.core.status().commit_index)
        for index in range(self.committed + 1, first.core.status().commit_index + 1):
            done = first.core.entry(index)
            holders = [one for one in self.hosts.values() if done is not None and one.disk.holds(done)]
            if done is not None and 2 * len(holders) <= len(self.hosts):
                raise AssertionError(f"entry {index} is committed, but durable on {len(holders)} only")
        self.committed = max(self.committed, first.core.status().commit_index)

    def propose(self, host: Host) -> None:
        payload = bytes([self.proposed % 251]) * self.random.randrange(0, 8)
        try:
            host.core.propose(payload, self.proposed)
            self.proposed += 1
        except (NotLeader, Busy):
            pass

    def compact(self, host: Host) -> None:
        """Take a snapshot at the applied index: durable file and record first, then the log is released."""
        index = host.core.status().applied_index
        done = host.core.entry(index)
        if done is None or host.writing:
            return
        snapshot = SnapshotMeta(index, done.term, host.core.configuration, f"{host.replica}-{index}")
        keep_from = self.random.randrange(max(1, index - 3), index + 2)
        host.disk.take_snapshot(snapshot, keep_from=keep_from)
        host.core.compact(snapshot, keep_from=keep_from)


@pytest.mark.parametrize(("seed", "size"), [(seed, 3 + 2 * (seed % 2)) for seed in range(16)])
def test_random_faults_break_no_promise(seed: int, size: int) -> None:
    chaos = Chaos(seed, size)
    for _ in range(2500):
        chaos.event()
    # After healing everything moves again, and everybody ends up with the same.
    chaos.cut = set()
    for _ in range(400):
        for host in chaos.hosts.values():
            host.persist()
            host.core.tick(10)
            for other in chaos.hosts:
                host.core.connection(other, closed=False)
            chaos.collect(host)
        chaos.random.shuffle(chaos.network)
        moving, chaos.network = chaos.network, []
        for message in moving:
            chaos.hosts[message.to].step(message)
        for host in chaos.hosts.values():
            chaos.collect(host)
        chaos.check()
    statuses = [host.core.status() for host in chaos.hosts.values()]
    assert sum(status.role is Role.LEADER for status in statuses) == 1
    ends = {(one.last_index, one.last_term, one.commit_index, one.applied_index) for one in statuses}
    assert len(ends) == 1
    assert statuses[0].commit_index == statuses[0].last_index


def test_the_random_test_reaches_what_it_should() -> None:
    chaos = Chaos(3, 3)
    for _ in range(6000):
        chaos.event()
    assert chaos.proposed > 50
    assert max(host.term for host in chaos.hosts.values()) > 3
    assert chaos.installed > 0
    assert max(host.core.status().commit_index for host in chaos.hosts.values()) > 50


# --- the checker notices --------------------------------------------------------------------------------------------


def test_checker_notices_two_leaders_of_a_term() -> None:
    checker = SafetyChecker()
    one, two = (follower(1, replica=replica).lead() for replica in (1, 2))
    checker.check([one.core])
    with pytest.raises(InvariantViolated, match="leads term 2"):
        checker.check([one.core, two.core])


def test_checker_notices_logs_that_do_not_match() -> None:
    checker = SafetyChecker()
    checker.check([follower(1, 1, replica=1).core])
    other = follower(replica=2, term=1)
    other.append(entry(1, 1, b"another payload"), entry(1, 2, b"1.2"), sender=1)
    with pytest.raises(InvariantViolated, match="entry 1 of term 1"):
        checker.check([other.core])


def test_checker_notices_another_history_below_the_same_entry() -> None:
    checker = SafetyChecker()
    checker.check([follower(1, 2, 3, replica=1).core])
    other = follower(replica=2, term=3)
    other.append(entry(1, 1, b"1.1"), entry(1, 2, b"1.2"), entry(3, 3, b"3.3"), sender=1)
    with pytest.raises(InvariantViolated, match="does not follow"):
        checker.check([other.core])


def test_checker_notices_a_leader_without_a_committed_entry() -> None:
    checker = SafetyChecker()
    checker.check([follower(1, 1, replica=1, commit=2).core])
    with pytest.raises(InvariantViolated, match="without entry 2"):
        checker.check([follower(1, replica=2).lead().core])


def test_checker_notices_two_committed_entries_at_one_index() -> None:
    checker = SafetyChecker()
    checker.check([follower(1, 1, replica=1, commit=2).core])
    with pytest.raises(InvariantViolated, match="elsewhere"):
        checker.check([follower(1, 2, replica=2, commit=2).core])


def test_checker_allows_restarts() -> None:
    checker = SafetyChecker()
    cluster = Cluster.of_size(3)
    cluster.elect()
    for host in cluster.up():
        checker.check([one.core for one in cluster.up()])
        host.start()
        checker.check([one.core for one in cluster.up()])


def with_configurations(replica: int, *configurations: Configuration, commit: int = 0, last_term: int = 1) -> Host:
    """A replica whose log holds these from index 1 on, of term 1, the last of `last_term`."""
    terms = [*[1] * (len(configurations) - 1), last_term]
    entries = [configuration_entry(terms[at], at + 1, one) for at, one in enumerate(configurations)]
    return Host(replica, disk=Disk(HardState(last_term, 0, commit), entries))


def test_checker_notices_configurations_that_follow_each_other_without_a_common_quorum() -> None:
    checker = SafetyChecker()
    five = Configuration((1, 2, 3, 4, 5))
    checker.check([with_configurations(1, five, Configuration((1, 2, 3, 4))).core])
    with pytest.raises(InvariantViolated, match="may miss"):
        checker.check([with_configurations(1, five, Configuration((4, 5, 6))).core])


def test_checker_notices_two_configurations_in_force_that_can_decide_apart() -> None:
    """The bug of 2015 (HAZARDS 18): each goes together with what it follows, the two don't."""
    checker = SafetyChecker()
    four = Configuration((1, 2, 3, 4))
    checker.check([with_configurations(1, four, commit=1).core])
    checker.check([with_configurations(2, four, Configuration((1, 2, 3))).core])
    with pytest.raises(InvariantViolated, match="those of replica 2"):
        checker.check([with_configurations(3, four, Configuration((1, 2, 3, 4, 5)), last_term=2).core])


def test_checker_allows_configurations_on_logs_that_cannot_win() -> None:
    checker = SafetyChecker()
    three, joint, last = Configuration((1, 2, 3)), Configuration((4, 5), outgoing=(1, 2, 3)), Configuration((4, 5))
    checker.check([with_configurations(2, three).core])
    checker.check([with_configurations(4, three, joint, last, commit=3).core])


@given(st.lists(st.sets(st.integers(1, 6), min_size=1), min_size=2, max_size=4))
def test_overlap_of_quorums_is_what_trying_them_all_finds(parts: list[set[int]]) -> None:
    first = Configuration(tuple(parts[0]), outgoing=tuple(parts[2]) if len(parts) > 2 else ())
    other = Configuration(tuple(parts[1]), outgoing=tuple(parts[3]) if len(parts) > 3 else ())
    everybody = set().union(*parts)
    splits = [set(some) for size in range(len(everybody) + 1) for some in combinations(everybody, size)]
    apart = any(has_quorum(first, some) and has_quorum(other, everybody - some) for some in splits)
    if quorums_overlap(first, other):
        assert not apart
    elif len(parts) == 2:
        # With two electorates on a side it is a bound only: four majorities can be in each other's way.
        assert apart
