"""Memory of uncommitted and unwritten entries is bounded, on leaders across terms and on followers with a stuck disk
(HAZARDS 27)."""

import random

import pytest

from consensus.core.errors import Busy
from consensus.core.interface import Entry, SnapshotMeta
from consensus.core.raft import RaftConfig
from consensus.core.raft.log import Log, size_of
from consensus.core.raft.membership import Membership
from tests.unit.core.harness import THREE, AppendResponse, Cluster, Host, entry, follower, leader, only

SMALL = RaftConfig(
    follower_bytes_max=40, uncommitted_bytes_max=400, append_bytes_max=10, inflight_bytes_max=100, probe_bytes_max=10
)


def held(host: Host) -> int:
    return host.core._following.held_bytes()


def test_leader_refuses_what_crosses_its_bound() -> None:
    host = leader(1, config=RaftConfig(uncommitted_bytes_max=10))
    host.propose(b"1234567")  # three bytes of the old entry are uncommitted too
    with pytest.raises(Busy, match="bound is 10"):
        host.propose(b"1")
    host.match(2, 3)
    host.persist()
    host.propose(b"1")


def test_uncommitted_entries_of_earlier_leaders_count() -> None:
    """etcd-io/raft 11: a new leader began at zero, and so the log grew with every term."""
    host = leader(1, 1, config=RaftConfig(uncommitted_bytes_max=8))  # two entries of three bytes, uncommitted
    with pytest.raises(Busy, match="holds 6 bytes"):
        host.propose(b"abc")
    for _ in range(3):
        host.heartbeat(sender=2, term=host.term + 1)
        host.persist()
        host.lead()
        with pytest.raises(Busy, match="holds 6 bytes"):
            host.propose(b"abc")
    assert len(host.terms()) == 6


def test_follower_with_a_stuck_disk_drops_what_crosses_its_bound() -> None:
    host = follower(term=1, config=SMALL)
    host.persist()
    for index in range(1, 100):
        host.append(entry(1, index, b"x" * 10), after=(1 if index > 1 else 0, index - 1))
        assert held(host) <= 40
    assert host.core.status().last_index == 4
    assert host.core.dropped["follower_full"] == 1
    host.persist()
    assert only(AppendResponse, host.append(entry(1, 5, b"x" * 10), after=(1, 4)) + host.persist()).match_index == 5


def test_entries_that_are_there_already_are_no_more_to_hold() -> None:
    host = follower(term=1, config=SMALL)
    entries = [entry(1, index, b"x" * 10) for index in range(1, 5)]
    host.append(*entries)
    host.append(*entries)
    assert (held(host), host.core.dropped) == (40, {})


def test_follower_whose_disk_keeps_up_takes_what_must_come_before_anything_commits() -> None:
    """An old leader left more than the bound; only the no-op behind it can commit that."""
    host = follower(term=1, config=SMALL)
    for index in range(1, 9):
        host.append(entry(1, index, b"x" * 10), after=(1 if index > 1 else 0, index - 1), term=2)
        host.persist()
    assert held(host) == 80
    host.append(entry(2, 9), after=(1, 8), term=2, commit=9)
    host.persist()
    assert (held(host), host.core.status().commit_index) == (0, 9)


def test_one_larger_entry_is_taken_when_nothing_waits() -> None:
    host = follower(term=1, config=SMALL)
    host.append(entry(1, 1, b"x" * 100))
    assert held(host) == 100


def test_leader_brings_a_follower_back_when_its_disk_moves_again() -> None:
    cluster = Cluster.of_size(3, config=SMALL)
    first = cluster.elect()
    stuck = cluster.hosts[3]

    def run(elapsed_ms: int, *, disk: bool) -> None:
        for _ in range(elapsed_ms // 10):
            for host in cluster.up():
                host.core.tick(10)
                host.drain()
                if disk or host is not stuck:
                    host.persist()
                queue, host.sent = host.sent, []
                for message in queue:
                    cluster.deliver(message)
            assert held(stuck) <= 40

    for _ in range(50):
        first.propose(b"x" * 10)
        run(20, disk=False)
    assert first.core.status().commit_index == 51
    assert stuck.core.status().last_index < 10
    run(3000, disk=True)
    assert stuck.core.status().commit_index == 51
    assert cluster.leaders() == [first]
    assert [one.payload for one in stuck.applied[1:]] == [b"x" * 10] * 50


@pytest.mark.parametrize("seed", range(20))
def test_sizes_of_the_log_agree_with_counting_entry_by_entry(seed: int) -> None:
    source = random.Random(seed)
    log = Log((), None, Membership(1, THREE))
    commit, term = 0, 1
    for _ in range(300):
        kind = source.choice(("append", "merge", "merge", "overwrite", "commit", "compact", "restore"))
        if kind == "append":
            log.append(_sized(source, term, log.last_index + 1))
        elif kind == "merge":
            fresh = [_sized(source, term, log.last_index + 1 + i) for i in range(source.randrange(1, 4))]
            log.merge(fresh, commit_index=commit)
        elif kind == "overwrite" and log.last_index > commit:
            term += 1
            start = source.randrange(commit + 1, log.last_index + 1)
            log.merge([_sized(source, term, start)], commit_index=commit)
        elif kind == "commit":
            commit = source.randrange(commit, log.last_index + 1)
        elif kind == "compact" and commit > log.snapshot_index:
            keep_from = source.randrange(log.first_index, commit + 2)
            log.compact(SnapshotMeta(commit, log.term(commit) or 0, THREE, "s"), keep_from=keep_from)
        elif kind == "restore" and source.random() < 0.1:
            commit = log.last_index + 5
            log.restore(SnapshotMeta(commit, term, THREE, "s"), commit_index=commit)
        sizes = [size_of(one) for one in log.slice(log.first_index, bytes_max=10**9)]
        above = source.randrange(log.base_index, log.last_index + 1)
        assert log.bytes_above(above) == sum(sizes[above - log.base_index :])
        if above < log.last_index:
            bytes_max = source.randrange(0, 30)
            taken = [one.index for one in log.slice(above + 1, bytes_max=bytes_max, at_least_one=False)]
            expected, total = [], 0
            for index in range(above + 1, log.last_index + 1):
                total += sizes[index - log.first_index]
                if total > bytes_max:
                    break
                expected.append(index)
            assert taken == expected
            assert [one.index for one in log.slice(above + 1, bytes_max=bytes_max)] == (expected or [above + 1])


def _sized(source: random.Random, term: int, index: int) -> Entry:
    return entry(term, index, bytes(source.randrange(0, 9)))
