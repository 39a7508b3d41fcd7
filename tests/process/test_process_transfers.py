"""Servers are restarted one after the other, and leadership goes back to each by a planned transfer, while workers
train: they end with the digest of an undisturbed run (RULES C6)."""

from pathlib import Path

import pytest

from paramserver.lab import records
from paramserver.lab.cluster import Cluster, ServerOptions, WorkerOptions
from paramserver.lab.final import find_model

RANKS = 2
STEPS = 600
MODEL = "digits"
RUN_TIMEOUT_S = 100.0


def start_workers(cluster: Cluster) -> None:
    cluster.start_workers(
        WorkerOptions(rank=rank, ranks=RANKS, steps=STEPS, model_name=MODEL, seed=3, device="numpy")
        for rank in range(RANKS)
    )


def completed(cluster: Cluster) -> int:
    return min(records.read(worker.record, rank).last_step + 1 for rank, worker in cluster.workers.items())


def finish(cluster: Cluster) -> str:
    cluster.await_workers(RUN_TIMEOUT_S)
    ends = [records.read(worker.record, rank).end for rank, worker in cluster.workers.items()]
    (digest,) = {end.digest for end in ends if end is not None}
    return digest


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    with Cluster(folder=tmp_path_factory.mktemp("undisturbed")) as cluster:
        start_workers(cluster)
        return finish(cluster)


@pytest.mark.timeout(240)
def test_leadership_returns_to_restarted_servers_during_training(tmp_path: Path, undisturbed: str) -> None:
    options = ServerOptions(flags=("--prefer-after-ms", "300"))
    with Cluster(folder=tmp_path, options=options) as cluster:
        start_workers(cluster)
        cluster.wait_for(lambda: completed(cluster) >= 3, "the first steps", RUN_TIMEOUT_S)
        groups = {shard.group for shard in find_model(cluster.statuses(), MODEL).shards if shard.blocks}
        preferred = cluster.await_leaders(groups)
        transfers = 0
        for node in sorted(set(preferred.values())):
            mine = {group for group, leader in preferred.items() if leader == node}
            cluster.terminate(node)
            # Others took over before it comes back, so that what follows is a transfer.
            cluster.wait_for(
                lambda mine=mine, node=node: all(cluster.leader_of(group) != node for group in mine),
                f"other leaders of {mine}",
            )
            cluster.start_server(node)
            cluster.wait_for(
                lambda mine=mine, node=node: all(cluster.leader_of(group) == node for group in mine),
                f"node {node} to lead {mine} again",
            )
            transfers += len(mine) * (completed(cluster) < STEPS)
        assert transfers >= 2, "it was over before the transfers were"
        assert finish(cluster) == undisturbed
