"""Blocks over groups, leaders over nodes, pulls over replicas, on real servers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import paramserver
from paramserver.lab import loads
from paramserver.lab.cluster import Cluster, ServerOptions
from paramserver.lab.loads import NodeTotal
from tests.process.small import SMALL
from worker.model import Model

GROUPS = 6
BLOCK_BYTES = 64 << 10
BLOCKS = 48
ELEMENTS = BLOCKS * BLOCK_BYTES // 4
ZONES = {1: "east", 2: "west", 3: "west"}
pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(options=ServerOptions(flags=(*SMALL.flags, "--groups", str(GROUPS)), zones=ZONES)) as cluster:
        cluster.await_leaders(range(GROUPS + 1))
        yield cluster


def values() -> dict[str, np.ndarray]:
    return {"w": np.arange(ELEMENTS, dtype=np.float32)}


def create(client: paramserver.Client, name: str) -> Model:
    return client.model(
        name, {"w": (ELEMENTS,)}, optimizer=paramserver.sgd(1.0), rank=0, initial=values(), block_bytes=BLOCK_BYTES
    )


def pulled(cluster: Cluster) -> dict[int, int]:
    """Node -> blocks sent to pulls since it was started."""
    return {total.node: total.load.pulls for total in loads.by_node(cluster.statuses())}


def test_blocks_and_leaders_are_even_and_status_says_what_they_hold_and_do(cluster: Cluster) -> None:
    with paramserver.connect(cluster.endpoints) as client:
        model = create(client, "even")
        before = {total.node: total.load for total in loads.by_node(cluster.statuses())}
        weights = model.push_pull({"w": np.ones(ELEMENTS, np.float32)}).result()
        assert np.array_equal(weights["w"], values()["w"] - 1)
        assert client.zones == ZONES

        def even() -> tuple[NodeTotal, ...] | None:
            totals = loads.by_node(cluster.statuses())
            return totals if all(len(total.leads) == GROUPS // 3 for total in totals) else None

        nodes = cluster.wait_for(even, "each node to lead as many groups")
        assert [total.blocks_led for total in nodes] == [BLOCKS // 3] * 3
        assert [total.zone for total in nodes] == list(ZONES.values())
        groups = loads.by_group(cluster.statuses())
        assert [total.group for total in groups] == list(range(1, GROUPS + 1))
        assert [total.weight_bytes for total in groups] == [ELEMENTS * 4 // GROUPS] * GROUPS
        did = [(total.load, before[total.node]) for total in nodes]
        assert sum(now.pushed_bytes - then.pushed_bytes for now, then in did) == ELEMENTS * 4
        assert sum(now.returned_bytes - then.returned_bytes for now, then in did) == ELEMENTS * 4
        assert sum(now.pushes - then.pushes for now, then in did) == BLOCKS
        assert all(now.pulls == then.pulls for now, then in did), "what a push returns stays on its stream"
        told = cluster.command("status", "--json")
        assert told.returncode == 0
        load = json.loads(told.stdout)["load"]
        assert [one["blocks"] for one in load["groups"]] == [BLOCKS // GROUPS] * GROUPS
        text = cluster.command("status").stdout
        assert "blocks led" in text
        assert "east" in text


def test_nearest_pulls_come_from_the_zone(cluster: Cluster) -> None:
    with (
        paramserver.connect(cluster.endpoints) as trainer,
        paramserver.connect(cluster.endpoints, pull_policy="nearest", zone="west") as client,
    ):
        create(trainer, "near")
        model = client.model("near")
        cluster.wait_for(lambda: client.zones == ZONES, "the zones")
        before = pulled(cluster)
        assert np.array_equal(model.pull(version=0)["w"], values()["w"])
        after = pulled(cluster)
        assert after[1] == before[1]
        assert sum(after.values()) - sum(before.values()) == BLOCKS


def test_pulls_are_spread_and_go_on_when_a_follower_is_killed(cluster: Cluster) -> None:
    with paramserver.connect(cluster.endpoints) as trainer, paramserver.connect(cluster.endpoints) as client:
        create(trainer, "spread")
        model = client.model("spread")
        cluster.wait_for(lambda: not client.unreachable(), "connections to all servers")
        before = pulled(cluster)
        rounds = 6
        for _ in range(rounds):
            assert np.array_equal(model.pull(version=0)["w"], values()["w"])
        counts = {node: count - before[node] for node, count in pulled(cluster).items()}
        assert sum(counts.values()) == rounds * BLOCKS, "each block came once"
        assert min(counts.values()) >= rounds * BLOCKS // 6, f"all three served: {counts}"

        done, failures, after_kill = threading.Event(), list[BaseException](), threading.Semaphore(0)

        def read() -> None:
            try:
                while not done.is_set():
                    assert np.array_equal(model.pull(version=0, timeout=20)["w"], values()["w"])
                    after_kill.release()
            except BaseException as error:
                failures.append(error)
                after_kill.release()

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert after_kill.acquire(timeout=20)
            cluster.kill(3)
            for _ in range(30):
                assert after_kill.acquire(timeout=20)
        finally:
            done.set()
            reader.join(30)
            cluster.start_server(3)
        assert not failures


def test_readers_get_one_version_of_all_blocks_while_training_goes_on(cluster: Cluster) -> None:
    """Replicas are a step apart at times, and pulls ask all of them: what comes is one version all the same."""
    with paramserver.connect(cluster.endpoints) as trainer, paramserver.connect(cluster.endpoints) as client:
        trained = create(trainer, "trained")
        model = client.model("trained")
        before = pulled(cluster)
        done, failures = threading.Event(), list[BaseException]()

        def train() -> None:
            try:
                while not done.is_set():
                    trained.push_pull({"w": np.ones(ELEMENTS, np.float32)}).result(20)
            except BaseException as error:
                failures.append(error)

        training = threading.Thread(target=train)
        training.start()
        versions = []
        try:
            for _ in range(20):
                weights = model.pull(timeout=20)
                assert set(weights.versions) == {weights.version}
                assert np.array_equal(weights["w"], values()["w"] - weights.version)
                versions.append(weights.version)
        finally:
            done.set()
            training.join(30)
        assert not failures
        assert versions == sorted(versions)
        assert versions[-1] > versions[0], "it was trained meanwhile"
        after = pulled(cluster)
        assert all(after[node] > before[node] for node in after)
