"""Entries that left memory, read back from the log for members that are behind, and for what recovery left there."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

from consensus.core.interface import AppendRequest, Configuration, Entry, EntryKind, SnapshotMeta
from consensus.core.raft import RaftConfig
from consensus.core.raft.log import size_of
from consensus.runtime import RuntimeOptions
from consensus.runtime.loading import WAITING_MAX, Loading
from consensus.runtime.machine import MachineHost
from consensus.runtime.services import LOADS_LANE
from consensus.storage.checksum import crc32c
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.snapshots import SnapshotFiles
from tests.unit.runtime.cluster import Cluster, Journal, Lanes, Node

NOTHING_KEPT = RaftConfig(
    unloaded_after_bytes=0, inflight_stored_bytes_max=400, append_bytes_max=200, probe_bytes_max=0
)
OPTIONS = RuntimeOptions(raft=NOTHING_KEPT)


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number + b"." * 50 for number in range(start, start + count)]


def loaded_bytes(node: Node) -> int:
    core = node.handle.core
    assert core is not None
    status = core.status()
    found = [core.entry(index) for index in range(status.first_index, status.applied_index + 1)]  # type: ignore[attr-defined]
    return sum(len(entry.payload) for entry in found if entry is not None)


def away(options: RuntimeOptions, count: int = 60) -> tuple[Cluster, int, list[bytes]]:
    """A cluster whose third node misses most of the commands; (cluster, third, commands)."""
    cluster = Cluster(options=options)
    commands = numbered(count)
    cluster.commit(*commands[:10])
    third = cluster.followers()[-1].runtime.node
    cluster.kill(third)
    for start in range(10, count, 10):
        cluster.commit(*commands[start : start + 10])
    return cluster, third, commands


def watch(node: Node) -> list[AppendRequest]:
    """What that node receives from now on."""
    requests: list[AppendRequest] = []
    received = node.runtime.received

    def watched(sender: int, envelopes: Sequence[Any]) -> None:
        requests.extend(each.message for each in envelopes if isinstance(each.message, AppendRequest))
        received(sender, envelopes)

    node.runtime.received = watched  # type: ignore[method-assign]
    return requests


def test_one_that_was_away_is_caught_up_from_disk_while_commands_go_on() -> None:
    cluster, third, commands = away(OPTIONS)
    leader = cluster.leader()
    assert [loaded_bytes(node) for node in cluster.nodes.values()] == [0, 0]
    jobs = leader.lanes.jobs
    started = cluster.restart(third)
    requests = watch(started)
    cluster.network.join(third, started.runtime)
    more = numbered(20, 60)
    for command in more:
        cluster.propose(command)
        cluster.tick()
    cluster.until(lambda: started.machine.commands == [*commands, *more])
    assert leader.lanes.jobs > jobs
    assert leader.handle.status().snapshots_sent == 0
    assert not any(entry.stored_bytes for request in requests for entry in request.entries)
    cluster.run(50)
    assert [loaded_bytes(node) for node in cluster.nodes.values()] == [0, 0, 0]


def test_while_they_are_read_nothing_overtakes_them_and_the_window_bounds_them() -> None:
    cluster, third, commands = away(OPTIONS)
    leader = cluster.leader()
    leader.lanes.held.add(LOADS_LANE)
    started = cluster.restart(third)
    requests = watch(started)
    cluster.network.join(third, started.runtime)
    cluster.run(300)
    cluster.commit(*numbered(5, 60))
    assert [entry for request in requests for entry in request.entries] == []
    waiting = [each for each in leader.handle._appends._waiting[third] if each.entries]
    assert sum(size_of(entry) for each in waiting for entry in each.entries) <= 400 + 200
    leader.lanes.held.clear()
    cluster.until(lambda: started.machine.commands == [*commands, *numbered(5, 60)])
    indexes = [entry.index for request in requests for entry in request.entries]
    assert indexes == sorted(indexes)
    assert leader.handle._appends._waiting == {}


def test_what_was_compacted_while_it_was_to_be_read_comes_as_a_snapshot() -> None:
    cluster, third, commands = away(OPTIONS)
    leader = cluster.leader()
    leader.lanes.held.add(LOADS_LANE)
    started = cluster.restart(third)
    cluster.run(300)
    leader.handle.want_snapshot()
    cluster.run(300)
    core = leader.handle.core
    assert core is not None
    meta = leader.handle._snapshots.newest  # type: ignore[union-attr]
    assert meta is not None
    with leader.runtime.input():
        core.compact(meta, keep_from=meta.index + 1)
        leader.writer.release(1, meta.index + 1)
    leader.lanes.held.clear()
    cluster.until(lambda: started.machine.commands == commands)
    assert leader.runtime.dropped["entries_left_the_log"] > 0
    assert started.listener.of("restored")


def test_a_leader_that_is_deposed_while_it_reads_does_no_harm() -> None:
    cluster, third, commands = away(OPTIONS)
    leader = cluster.leader()
    leader.lanes.held.add(LOADS_LANE)
    started = cluster.restart(third)
    cluster.run(200)
    other = next(node for node in cluster.followers() if node is not started)
    leader.handle.transfer(other.runtime.node, lambda _: None)
    cluster.until(lambda: other.handle.ready_to_serve)
    leader.lanes.held.clear()
    cluster.until(lambda: started.machine.commands == commands)
    cluster.commit(b"and on")
    assert [node.machine.commands[-1] for node in cluster.nodes.values()] == [b"and on"] * 3


def test_everything_starts_again_without_its_log_in_memory() -> None:
    cluster = Cluster(options=OPTIONS)
    cluster.wal_options = {"recovered_bytes_max": 0, "open_copy_bytes_max": 0}
    commands = numbered(40)
    cluster.commit(*commands)
    for node in cluster.members:
        cluster.kill(node)
    for node in cluster.members:
        cluster.restart(node)
        assert [entry.payload for entry in cluster.nodes[node].handle.core._log._entries if size_of(entry)] == [  # type: ignore[union-attr]
            b""
        ] * 40
    cluster.leader()
    cluster.commit(b"and on")
    assert [node.machine.commands for node in cluster.nodes.values()] == [[*commands, b"and on"]] * 3


# --- the state machine's side -----------------------------------------------------------------------------------------


def command(index: int) -> Entry:
    payload = b"command %d" % index
    return Entry(1, index, EntryKind.NORMAL, payload, crc32c(payload))


def test_what_left_the_log_before_it_was_applied_waits_for_the_snapshot_that_holds_it() -> None:
    """A snapshot's record took its place in the log; the snapshot itself comes to the state machine right after."""
    store, log = SnapshotFiles(MemoryFileSystem(), "snapshots"), {index: command(index) for index in range(1, 9)}
    source = Journal()
    for index in range(1, 7):
        source.apply(command(index))
    meta = SnapshotMeta(6, 1, Configuration((1,)), "s6")
    writer = store.create(1, meta)
    for chunk in source.snapshot():
        writer.write(chunk)
    writer.commit()

    def load(entries: Sequence[Entry]) -> tuple[Entry, ...] | None:
        found = [log.get(entry.index) for entry in entries]
        return tuple(entry for entry in found if entry is not None) if all(found) else None

    machine = Journal()
    host = MachineHost(group=1, machine=machine, configuration=Configuration((1,)), node=1, incarnation=1, load=load)
    left = [command(index).left_out() for index in range(1, 9)]
    assert host.apply(left[:2]).index == 2
    for index in range(1, 7):
        del log[index]
    batch = host.apply(left[2:])
    assert (batch.index, batch.waits) == (2, False)
    assert host.capture(1) is None, "what it holds is about to be replaced"
    assert host.restore(store, meta) is None
    assert host.apply(()).index == 8
    assert machine.commands == [command(index).payload for index in range(1, 9)]


# --- what waits -------------------------------------------------------------------------------------------------------


class Alone:
    """What `Loading` asks of a node."""

    def __init__(self) -> None:
        self.lanes = Lanes()
        self.dropped: Counter[str] = Counter()
        self.writer = SimpleNamespace(load=lambda group, entries: tuple(command(entry.index) for entry in entries))

    def run(self, lane: str, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.lanes.run(lane, work, done)

    def input(self) -> AbstractContextManager[bool]:
        return nullcontext(True)


def request(to: int, *entries: Entry) -> AppendRequest:
    previous = entries[0].index - 1 if entries else 0
    return AppendRequest(
        sender=1, to=to, term=1, incarnation=1, previous_index=previous, previous_term=1, commit=7, entries=entries
    )


def test_members_do_not_wait_for_each_other_and_what_waits_is_bounded() -> None:
    node, sent = Alone(), list[AppendRequest]()
    loading = Loading(node, group=1, send=sent.append)  # type: ignore[arg-type]
    whole = request(3, command(5))
    loading.send(request(2, command(1).left_out()))
    loading.send(whole)
    assert sent == [whole]
    following = [request(2, command(2)), request(2), request(2, command(3).left_out()), request(2, command(4))]
    for each in following:
        loading.send(each)
    for _ in range(WAITING_MAX):
        loading.send(request(2))
    assert node.dropped == {"too_many_requests_to_load": len(following)}
    while node.lanes.work():
        pass
    expected = [request(2, command(1)), *following[:2], request(2, command(3)), following[3]]
    assert sent[1:6] == expected
    assert len(sent) == 1 + 1 + WAITING_MAX
    loading.send(request(2, command(6)))
    assert sent[-1] == request(2, command(6)), "nothing is left to wait for"
