"""Servers are restarted one after the other, and leadership goes back to each by a planned transfer, while workers
train: they end with the bits of the faultless run (RULES C6)."""

from pathlib import Path

import pytest

from paramserver.lab.cluster import Cluster, ServerOptions
from paramserver.lab.final import find_model
from tests.process.small import SMALL
from tests.process.training import MODEL, Training

STEPS = 250


@pytest.mark.timeout(240)
def test_leadership_returns_to_restarted_servers_during_training(tmp_path: Path) -> None:
    options = ServerOptions(flags=(*SMALL.flags, "--prefer-after-ms", "300"))
    with Cluster(folder=tmp_path, options=options) as cluster:
        training = Training(cluster, STEPS)
        training.until(3)
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
            with training.held():
                cluster.start_server(node)
            cluster.wait_for(
                lambda mine=mine, node=node: all(cluster.leader_of(group) == node for group in mine),
                f"node {node} to lead {mine} again",
            )
            transfers += len(mine) * (training.completed() < STEPS)
        assert transfers >= 2, "it was over before the transfers were"
        training.finish()
