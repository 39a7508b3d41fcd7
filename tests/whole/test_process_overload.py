"""Ten times the load, a storm of retries after an outage, readers that read nothing (FAULTS 26 and 29): on real
processes, and only what no clock of a busy test machine decides."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import paramserver
from benchmarks import overload
from benchmarks.overload import QUICK_FLAGS, counted, tell
from benchmarks.overloads.flood import Seen
from benchmarks.overloads.watch import changes, slope
from paramserver.lab.cluster import Cluster, ServerOptions
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.v1 import paramserver_pb2_grpc as services
from paramserver.wire.errors import Reason, Refusal
from tests.process.raw_client import Client, Stream
from worker.retry import RETRIES_AT_ONCE, RETRIES_PER_S

MIB = 1 << 20
READS_NOTHING_AHEAD = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
ROOT = Path(__file__).resolve().parents[2]


def test_fault_26_ten_times_the_load_is_shed_with_a_time_to_retry_and_costs_no_leader(tmp_path: Path) -> None:
    """All pulls are of one model, whose blocks are hot."""
    result = overload.run(overload.parsed(["--quick", "--hot", "--out", str(tmp_path / "overload.json")]))
    assert result["attempts"]["steps"] > 0
    assert result["attempts"]["pulls"] > 0
    assert [name for name, held in result["checks"].items() if not held] == [], json.dumps(result, indent=1)
    most = result["most"].values()
    assert max(one["push_streams"] for one in most) <= 4, "the bound that was given"
    assert max(one["sums_bytes_most"] for one in most) <= 16 * MIB


def test_fault_29_after_an_outage_workers_come_back_without_a_storm(tmp_path: Path) -> None:
    pushers = 8
    with Cluster(3, folder=tmp_path, options=ServerOptions(flags=QUICK_FLAGS)) as cluster:
        orders = tmp_path / "orders"
        tell(orders, pushers)
        line = [sys.executable, "-m", "benchmarks.overloads.flood", "--servers", cluster.endpoints]
        line += ["--orders", str(orders), "--number", "0", "--pushers", str(pushers), "--pullers", "0"]
        line += ["--model-bytes", str(MIB // 4), "--block-bytes", str(MIB // 16)]
        flood = cluster.start_child("flood", line, {"PYTHONPATH": str(ROOT)})
        flood.await_line("ready", 60)

        def steps() -> dict[str, int]:
            counts = counted([flood])
            return {name: counts[name] for name in (f"steps_{one}" for one in range(pushers))}

        cluster.wait_for(lambda: min(steps().values()) > 0, "a step of every worker")
        for node in cluster.servers:
            cluster.kill(node)
        begun_s, before = time.monotonic(), counted([flood])
        cluster.wait_for(lambda: counted([flood])["attempts_0"] > before["attempts_0"] + 5, "workers to try in vain")
        cluster.start()
        known = steps()
        cluster.wait_for(lambda: all(steps()[one] > known[one] + 1 for one in known), "every worker to go on", 60)
        passed_s, after = time.monotonic() - begun_s, counted([flood])
        most = RETRIES_AT_ONCE + RETRIES_PER_S * (passed_s + 1)
        for one in range(pushers):
            tried = after[f"attempts_{one}"] - before[f"attempts_{one}"]
            assert tried <= most, f"worker {one} tried {tried} times in {passed_s:.1f} s"
        assert not after["refused_without_a_time"]
        assert not [name for name in after if name.startswith("failed_")]


# --- readers that read nothing


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    flags = ("--reader-timeout-ms", "400", "--replies-bytes-max", str(MIB), "--pulls-bytes-max", str(16 * MIB))
    with Cluster(1, folder=tmp_path_factory.mktemp("impatient"), options=ServerOptions(flags=flags)) as running:
        running.await_leaders(range(2))
        yield running


def gauge(cluster: Cluster, name: str) -> float:
    answer: Any = cluster.status(1)
    return answer.gauges[name]


def test_pulls_that_nobody_reads_take_little_hold_up_nobody_and_are_ended(impatient: Cluster) -> None:
    readers, size = 12, 16 * MIB
    with paramserver.connect(impatient.endpoints) as client:
        zeros = np.zeros(size // 4, np.float32)
        model = client.model("unread", {"w": (size // 4,)}, optimizer=paramserver.sgd(0.1), initial={"w": zeros})
        before = gauge(impatient, "memory_bytes")
        described = model._engine.model
        request = pb.PullRequest(
            cluster=bytes.fromhex(client.cluster),
            group=1,
            model=described.model,
            generation=described.generation,
            placement_epoch=described.placement_epoch,
            min_version=0,
        )
        with grpc.insecure_channel(impatient.addresses[1], options=READS_NOTHING_AHEAD) as channel:
            unread = [services.DataStub(channel).Pull(request) for _ in range(readers)]
            firsts = [next(call) for call in unread]
            assert len(firsts) == readers
            for _ in range(3):
                model.pull(min_version=0, timeout=20)  # others get through all the while
            impatient.wait_for(lambda: gauge(impatient, "calls") <= 1, "the unread pulls to end")
            assert gauge(impatient, "pulls_bytes") == 0
            assert gauge(impatient, "memory_bytes") - before < readers * size / 2
            for call in unread:
                with pytest.raises(grpc.RpcError) as caught:
                    list(call)
                assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


def test_a_worker_that_reads_no_replies_is_ended_and_the_model_goes_on(impatient: Cluster) -> None:
    blocks, block, steps = 16, MIB // 4, 20
    with Client(impatient, "deaf") as deaf:
        deaf.open_session()
        wanted = pb.ModelSpec(
            name="deaf",
            tensors=[pb.TensorSpec(name="w", shape=[blocks * block // 4], dtype=pb.FLOAT32)],
            optimizer=pb.OptimizerSpec(sgd=pb.Sgd(learning_rate=0.5)),
            ranks=1,
            block_bytes=block,
        )
        created = deaf.create(wanted)
        zeros = np.zeros(blocks * block // 4, np.float32)
        stream = fill(deaf, created, zeros, blocks)
        assert stream is None
        opened = deaf.call("DescribeModel", pb.DescribeModelRequest(name="deaf"))
        claim = deaf.claim_rank(opened, 0)
        stream = deaf.ranked(opened, 1, 0, claim)
        ones = np.ones(block // 4, np.float32)
        for step in range(steps):
            for one in range(blocks):
                stream.push(one, step, ones)
        impatient.wait_for(lambda: gauge(impatient, "replies_without_weights") > 0, "replies to go without weights")
        impatient.wait_for(lambda: gauge(impatient, "push_streams") == 0, "the stream to be ended")
        assert gauge(impatient, "replies_bytes") == 0
        assert gauge(impatient, "replies_bytes_most") <= MIB
        with pytest.raises(grpc.RpcError) as caught:
            list(stream._call)
        assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        again = deaf.ranked(opened, 1, 0, claim)
        again.push(0, 0, ones)
        reached = again.receive().header.version
        again.push(0, reached, ones)
        assert again.receive().header.version == reached + 1
        again.cancel()


def fill(client: Client, model: pb.ModelDescription, values: np.ndarray, blocks: int) -> None:
    """Initial values of blocks of any size."""
    identity = {"model": model.model, "generation": model.generation}
    claim = client.command("ClaimInitialization", pb.ClaimInitializationRequest, **identity)
    stream: Stream = client.stream(model, 1, initialization_epoch=claim.epoch, method="Initialize")
    assert stream.receive().header.status == pb.STREAM_OPEN
    for block, part in enumerate(np.split(values, blocks)):
        stream.push(block, 0, part, kind=pb.INITIAL)
    assert len(stream.finish()) == blocks
    client.command("OpenModel", pb.OpenModelRequest, **identity, epoch=claim.epoch)


# --- that the checks can fail


def test_what_the_checks_rest_on() -> None:
    assert slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) == pytest.approx(2.0)
    assert slope([(1.0, 5.0)]) == 0.0
    assert changes([{1: (1, 1), 2: (1, 2)}, {1: (1, 1)}, {1: (1, 1), 2: (1, 2)}]) == 0
    assert changes([{1: (1, 1)}, {1: (2, 1)}, {1: (3, 2)}]) == 2
    seen = Seen()
    seen.refused(1, "a:1", "pull 1", Refusal(Reason.BUSY, "no", retry_after_ms=60_000))
    seen.attempt(1, "a:1", "pull 1")
    seen.refused(1, "a:1", "pull 1", Refusal(Reason.BUSY, "no"))
    assert (seen.counts["came_too_early"], seen.counts["refused_without_a_time"]) == (1, 1)
    report: dict[str, Any] = {
        "leader_changes": 1,
        "memory": {"1": {"mb_max": 2.0, "mb_bound": 1.0}},
        "descriptors": {"1": {"begin": 1, "max": 1000}},
        "answers": 1,
        "questions": 2,
    }
    counts = seen.counts
    counts["failed_NotFound"] = counts["refused_RESOURCE_EXHAUSTED_TOO_LARGE"] = 1
    assert not any(overload.always(report, counts).values())
