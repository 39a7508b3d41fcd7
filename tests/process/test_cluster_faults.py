"""Real processes, real kills: whatever happens to servers, training ends with the digest of an undisturbed run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paramserver.lab import records, status
from paramserver.lab.cluster import CATALOGUE_GROUP, Cluster, WorkerOptions
from paramserver.lab.final import find_model, read_final

STEPS = 60
RANKS = 2
MODEL = "digits"
RUN_TIMEOUT_S = 80.0


def start_workers(cluster: Cluster, steps: int = STEPS) -> None:
    cluster.start_workers(
        WorkerOptions(rank=rank, ranks=RANKS, steps=steps, model_name=MODEL, seed=3, device="numpy")
        for rank in range(RANKS)
    )


def completed(cluster: Cluster) -> int:
    """Steps completed by the slowest worker."""
    return min(records.read(worker.record, rank).last_step + 1 for rank, worker in cluster.workers.items())


def until_step(cluster: Cluster, step: int, timeout_s: float = RUN_TIMEOUT_S) -> None:
    cluster.wait_for(lambda: completed(cluster) >= step, f"step {step}", timeout_s)


def finish(cluster: Cluster) -> str:
    """The one model digest that all workers ended with."""
    cluster.await_workers(RUN_TIMEOUT_S)
    ends = [records.read(worker.record, rank).end for rank, worker in cluster.workers.items()]
    digests = {end.digest for end in ends if end is not None}
    assert len(digests) == 1, digests
    assert None not in ends
    return digests.pop()


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    with Cluster(folder=tmp_path_factory.mktemp("undisturbed")) as cluster:
        start_workers(cluster)
        return finish(cluster)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(folder=tmp_path) as cluster:
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
def test_kill_and_restart(cluster: Cluster, undisturbed: str, victim: str) -> None:
    start_workers(cluster)
    until_step(cluster, STEPS // 4)
    node = VICTIMS[victim](cluster)
    cluster.kill(node)
    until_step(cluster, STEPS // 2)  # goes on without it
    cluster.start_server(node)
    assert finish(cluster) == undisturbed


def test_without_a_majority_workers_wait_and_say_why(cluster: Cluster, undisturbed: str) -> None:
    start_workers(cluster)
    until_step(cluster, STEPS // 4)
    cluster.kill(1)
    cluster.kill(2)
    cluster.wait_for(
        lambda: all(records.read(worker.record, rank).waits for rank, worker in cluster.workers.items()),
        "workers that say what they wait for",
    )
    stands = completed(cluster)
    for rank, worker in cluster.workers.items():
        assert records.read(worker.record, rank).waits[-1].why
        assert worker.running
    assert completed(cluster) <= stands + 1
    cluster.start_server(2)
    assert finish(cluster) == undisturbed


def test_a_killed_worker_takes_its_rank_back(cluster: Cluster, undisturbed: str) -> None:
    start_workers(cluster)
    until_step(cluster, STEPS // 3)
    cluster.workers[1].kill()
    cluster.workers[1].start()
    assert finish(cluster) == undisturbed


def test_everything_stops_and_starts_again(cluster: Cluster, undisturbed: str) -> None:
    start_workers(cluster)
    assert finish(cluster) == undisturbed
    before = state_of(cluster)
    assert all(len(copies) == 3 for copies in before.values())
    assert set(cluster.terminate_all().values()) == {0}
    cluster.start()
    assert state_of(cluster) == before
