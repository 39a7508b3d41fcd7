"""Faults of network, disk, clock and interpreter on real processes (FAULTS rows 9-13, 18, 19): one-way partitions of a
leader, and one cluster whose servers take faults, in turn, while a worker trains."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from paramserver.lab import records, status
from paramserver.lab.cluster import Cluster, ServerOptions, WorkerOptions
from paramserver.lab.status import NodeSnapshot
from paramserver.v1 import paramserver_pb2 as pb
from tests.process.raw_client import Client, block_of, detail, spec
from tests.process.test_process_reads import NEVER_BACK, Reader, numbers, opened, step

GROUPS = range(4)


def terms(cluster: Cluster) -> dict[int, int]:
    """The highest of each group."""
    found: dict[int, int] = {}
    for node in status.reached(cluster.statuses()):
        for group in node.groups:
            found[group.group] = max(found.get(group.group, 0), group.term)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # Without snapshots the log only grows: no file of it is free to be used again when the disk is full.
    options = ServerOptions(flags=(*NEVER_BACK.flags, "--snapshot-log-bytes-min", str(256 << 20)))
    with Cluster(3, folder=tmp_path_factory.mktemp("faults"), options=options, links=True, faults=True) as running:
        yield running


@pytest.mark.parametrize("hears", [True, False], ids=["it hears the others", "the others hear it"])
def test_a_leader_cut_off_one_way_is_replaced_and_serves_no_linearizable_read(cluster: Cluster, hears: bool) -> None:
    group = 1
    cluster.await_leaders(GROUPS)
    with Client(cluster, f"anna-{hears}").open_session() as anna:
        model = anna.initialise(anna.create(spec(f"cut-{hears}", blocks=3, ranks=1)), numbers(0))
        claim = anna.claim_rank(model, 0)
        step(anna, model, claim, group, 0)
        reader = Reader(cluster, anna, model, group)
        old = cluster.leader_of(group)
        others = [node for node in cluster.addresses if node != old]
        assert reader.until_linearizable(old).version == 1
        before = terms(cluster)

        cluster.links.one_way(old, hears=hears)
        cluster.wait_for(
            lambda: status.leader_of([cluster.status(node) for node in others], group), "another leader of the group"
        )
        stream = anna.stream(
            model,
            group,
            node=status.leader_of([cluster.status(node) for node in others], group).node,  # type: ignore[union-attr]
            rank=0,
            lease_epoch=claim.lease_epoch,
            view=claim.view.number,
        )
        assert stream.receive().header.status == pb.STREAM_OPEN
        block = next(shard.first_block for shard in model.shards if shard.group == group)
        stream.push(block, 1, block_of(numbers(1), block))
        assert stream.receive().header.version == 2
        stream.cancel()
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                reader.pull(old, linearizable=True, timeout_s=0.5)
            error: Any = caught.value
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

        cluster.links.heal()
        assert reader.until_linearizable(old).version == 2
        cluster.await_leaders(GROUPS)
        after = terms(cluster)
        assert all(after[number] - before[number] <= 4 for number in GROUPS), (before, after)


@pytest.fixture(scope="module")
def training(cluster: Cluster) -> Cluster:
    """A worker trains on it from here on."""
    cluster.start_worker(WorkerOptions(rank=0, ranks=1, steps=1_000_000, device="numpy"))
    until_more_steps(cluster, 5)
    return cluster


def until_more_steps(cluster: Cluster, count: int = 10) -> None:
    worker = cluster.workers[0]

    def done() -> int:
        assert worker.running, worker.last_words()
        return records.read(worker.record, 0).last_step

    start = done()
    cluster.wait_for(lambda: done() >= start + count, f"{count} more steps")


def asked(cluster: Cluster, node: int) -> NodeSnapshot | None:
    answer = cluster.status(node)
    return answer if isinstance(answer, NodeSnapshot) else None


def test_status_and_log_say_that_faults_can_be_injected(training: Cluster) -> None:
    shown = training.command("status")
    assert re.search(
        r"! node 2: fault injection is on: this server is for tests only; now: nothing is wrong", shown.stdout
    )
    assert "fault injection is on" in training.servers[2].output()


def elected(cluster: Cluster) -> Counter[int]:
    """How many leaders each group has had."""
    said = "".join(server.log.read_text() for server in cluster.servers.values())
    return Counter(map(int, re.findall(r"this node leads group (\d+) in term", said)))


def most_elections(cluster: Cluster, strike: Callable[[], None], *, enough: int) -> int:
    """Of one group, by the strike. On a busy machine others come in, so the least of three tries counts, or the first
    that is `enough`."""
    least = 100
    for _ in range(3):
        cluster.await_leaders(GROUPS)
        before = elected(cluster)
        strike()
        until_more_steps(cluster)
        cluster.await_leaders(GROUPS)
        least = min(least, max((elected(cluster) - before).values(), default=0))
        if least <= enough:
            break
    return least


def test_a_wall_clock_that_jumps_changes_nothing_but_timestamps(training: Cluster) -> None:
    cluster = training

    def jump() -> None:
        for node in (1, 2):
            cluster.faults(node).heal()
        now_s = time.time()
        for node, jump_s in ((1, 5 * 3600.0), (2, -3 * 3600.0)):
            cluster.faults(node).clock(jump_s=jump_s, drift=0.5)
            cluster.faults(node).disk(slow_ms=0)  # is logged, with the new time
            line = cluster.servers[node].output().splitlines()[-1]
            jumped = [time.strftime("%H:%M", time.localtime(now_s + jump_s + late_s)) for late_s in (0, 60)]
            assert line[:5] in jumped, line

    assert most_elections(cluster, jump, enough=0) == 0
    for node in (1, 2):
        cluster.faults(node).heal()


def test_an_interpreter_that_stalls_costs_at_most_one_election(training: Cluster) -> None:
    cluster = training

    def stall() -> None:
        stalled = cluster.leader_of(1)
        started_s = time.monotonic()
        cluster.faults(stalled).stall(2.0)
        until_more_steps(cluster)
        cluster.wait_for(lambda: asked(cluster, stalled), "it to answer again")
        assert time.monotonic() - started_s > 1.0

    assert most_elections(cluster, stall, enough=1) <= 1


def test_a_leader_whose_disk_is_slow_hands_over(training: Cluster) -> None:
    cluster = training
    slow = cluster.leader_of(1)
    others = [node for node in cluster.addresses if node != slow]
    faults = cluster.faults(slow)
    faults.disk(slow_ms=2000)
    cluster.wait_for(
        lambda: status.leader_of([cluster.status(node) for node in others], 1), "another leader of the group"
    )
    until_more_steps(cluster)
    assert faults.state().slowed > 0
    faults.heal()
    cluster.wait_for(
        lambda: (seen := asked(cluster, slow)) is not None and not any(one.storage_stalled for one in seen.groups),
        "its disk to be well again",
    )


def test_a_full_disk_refuses_pushes_and_clears_by_itself(training: Cluster) -> None:
    cluster = training
    with Client(cluster, "fred").open_session() as fred:
        model = opened(fred)
        group = model.shards[0].group
        claim = fred.claim_rank(model, 0)
        full = cluster.leader_of(group)
        faults = cluster.faults(full)
        faults.disk(full=True)
        cluster.wait_for(
            lambda: (seen := asked(cluster, full)) is not None and seen.disk_full, "the disk to be found full"
        )
        stream = fred.stream(model, group, node=full, rank=0, lease_epoch=claim.lease_epoch, view=claim.view.number)
        block = model.shards[0].first_block
        stream.push(block, 0, block_of(numbers(0), block))
        with pytest.raises(grpc.RpcError) as caught:
            [stream.receive() for _ in range(2)]
        error: Any = caught.value
        assert (error.code(), detail(error).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
        assert detail(error).retry_after_ms > 0
        assert cluster.servers[full].running
        faults.disk(full=False)
        cluster.wait_for(
            lambda: (seen := asked(cluster, full)) is not None and not seen.disk_full, "the disk to have space again"
        )
        step(fred, model, claim, group, 0)
    until_more_steps(cluster)


def fill(cluster: Cluster, node: int, way_out: str) -> None:
    """Until the node's alarm names that way out."""
    cluster.faults(node).disk(full=True)
    cluster.wait_for(
        lambda: (seen := asked(cluster, node)) is not None and way_out in " ".join(seen.alarms), f"{way_out!r}"
    )


def test_a_node_with_a_full_disk_is_told_to_lead_nothing(training: Cluster) -> None:
    cluster = training
    node = next(node for node in cluster.addresses if node != cluster.leader_of(0))
    fill(cluster, node, f"node drain {node} --leaders-only")
    drained = cluster.command("node", "drain", str(node), "--leaders-only")
    assert drained.returncode == 0, drained.stderr
    said = cluster.servers[node].output
    cluster.wait_for(lambda: "what group 0 tells of nodes is not kept" in said(), "it to be told")
    assert "Traceback" not in said()
    assert node not in cluster.await_leaders(GROUPS).values()
    until_more_steps(cluster)
    cluster.faults(node).heal()
    assert cluster.command("node", "drain", str(node), "--undo").returncode == 0


def test_a_sync_that_fails_ends_the_server_with_74_and_nothing_is_lost(training: Cluster) -> None:
    cluster = training
    failing = cluster.leader_of(1)
    cluster.faults(failing).disk(fsync_error=True)
    assert cluster.servers[failing].wait(20) == 74
    assert "storage failed" in cluster.servers[failing].output()
    until_more_steps(cluster)
    cluster.start_server(failing)
    until_more_steps(cluster)
    assert cluster.faults(failing).state().failed_syncs == 0, "a new life begins without faults"


def test_group_0s_leader_with_a_full_disk_is_stopped_as_its_alarm_says(training: Cluster) -> None:
    """It can record no order to drain it."""
    cluster = training
    node = cluster.leader_of(0)
    fill(cluster, node, "stop this server (SIGTERM)")
    assert cluster.terminate(node) == 0
    until_more_steps(cluster)
