"""Real processes, real kills: whatever happens to servers, training ends with the bits of the faultless run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paramserver.lab import records, status
from paramserver.lab.cluster import CATALOGUE_GROUP, Cluster
from paramserver.lab.final import find_model, read_final
from tests.process.small import SMALL
from tests.process.training import MODEL, Training

STEPS = 60


def data_leader(cluster: Cluster) -> tuple[int, int]:
    """A group that holds a part of the model, and the node that leads it."""
    model = find_model(cluster.statuses(), MODEL)
    group = min(shard.group for shard in model.shards if shard.blocks)
    return group, cluster.leader_of(group)


def state_of(cluster: Cluster) -> dict[tuple[int, int], dict[int, tuple[int, str, bytes]]]:
    final = read_final(cluster, MODEL, STEPS)
    return {
        (key.group, key.block): {node: (copy.version, copy.digest, copy.weights) for node, copy in copies.items()}
        for key, copies in final.blocks.items()
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(folder=tmp_path, options=SMALL) as cluster:
        yield cluster


def follower(cluster: Cluster) -> int:
    leaders = set(status.leaders(cluster.statuses()).values())
    _, leader = data_leader(cluster)
    # In a cluster of three every node may lead something: then one that follows at least in the model's group.
    return min(set(cluster.addresses) - leaders, default=next(node for node in cluster.addresses if node != leader))


VICTIMS: dict[str, Callable[[Cluster], int]] = {
    "a follower": follower,
    "a data group's leader": lambda cluster: data_leader(cluster)[1],
    "group 0's leader": lambda cluster: cluster.leader_of(CATALOGUE_GROUP),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_kill_and_restart(cluster: Cluster, victim: str) -> None:
    training = Training(cluster, STEPS)
    training.until(STEPS // 4)
    node = VICTIMS[victim](cluster)
    cluster.kill(node)
    training.until(STEPS // 2)  # goes on without it
    cluster.start_server(node)
    training.finish()


def test_without_a_majority_workers_wait_and_say_why(cluster: Cluster) -> None:
    training = Training(cluster, STEPS)
    training.until(STEPS // 4)
    cluster.kill(1)
    cluster.kill(2)
    cluster.wait_for(
        lambda: all(records.read(worker.record, rank).waits for rank, worker in cluster.workers.items()),
        "workers that say what they wait for",
    )
    stands = training.completed()
    for rank, worker in cluster.workers.items():
        assert records.read(worker.record, rank).waits[-1].why
        assert worker.running
    assert training.completed() <= stands + 1
    cluster.start_server(2)
    training.finish()


def test_a_killed_worker_takes_its_rank_back(cluster: Cluster) -> None:
    training = Training(cluster, STEPS)
    training.until(STEPS // 3)
    cluster.workers[1].kill()
    cluster.workers[1].start()
    training.finish()


def test_everything_stops_and_starts_again(cluster: Cluster) -> None:
    training = Training(cluster, STEPS)
    training.finish()
    before = state_of(cluster)
    assert all(len(copies) == 3 for copies in before.values())
    assert set(cluster.terminate_all().values()) == {0}
    cluster.start()
    assert state_of(cluster) == before
