"""Leaders of several groups on real processes: spread over the nodes from the start, back on a node that was killed and
came again, without being asked; `paramserver status` shows it (RULES C6)."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paramserver.lab import status
from paramserver.lab.cluster import PARAMSERVER, Cluster, ServerOptions

NODES = 4
SPREAD = {0: 1, 1: 1, 2: 2, 3: 3, 4: 4}
"""Group 0 and a data group a node, each led by the first of its voters."""
QUICK = ServerOptions(flags=("--segment-bytes", str(1 << 20), "--prefer-after-ms", "300"))


def leaders(cluster: Cluster) -> dict[int, int]:
    return status.leaders(cluster.statuses())


def shown(cluster: Cluster, *flags: str) -> str:
    command = [*PARAMSERVER, "status", "--servers", cluster.endpoints, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def leader_rows(text: str) -> set[tuple[str, str]]:
    """(group, node) of the rows of leaders."""
    rows = [line.split() for line in text.splitlines()]
    return {(row[0], row[1]) for row in rows if len(row) > 4 and row[2] == "leader"}


def told_of(cluster: Cluster, wanted: Callable[[dict[str, int]], bool]) -> dict[str, Any] | None:
    """What status tells, if its leaders are as wanted."""
    told = json.loads(shown(cluster, "--json"))
    return told if wanted(told["leaders"]) else None


def test_leaders_spread_over_the_nodes_and_return_to_one_that_was_killed(tmp_path: Path) -> None:
    with Cluster(NODES, folder=tmp_path, options=QUICK) as cluster:
        cluster.wait_for(lambda: leaders(cluster) == SPREAD, "leaders on all nodes")
        cluster.kill(2)
        cluster.wait_for(lambda: leaders(cluster).get(2) in (3, 4), "another leader of group 2")
        # Not one look: the two that stay may hand the group over to each other meanwhile.
        told = cluster.wait_for(lambda: told_of(cluster, lambda led: led.get("2") in (3, 4)), "status to name it")
        assert [one["address"] for one in told["unreachable"]] == [cluster.addresses[2]]
        cluster.start_server(2)
        cluster.wait_for(lambda: leaders(cluster) == SPREAD, "leaders where they were")
        spread = {str(group): node for group, node in SPREAD.items()}
        cluster.wait_for(lambda: told_of(cluster, lambda led: led == spread), "status to say so")
        as_rows = {(group, str(node)) for group, node in spread.items()}
        cluster.wait_for(lambda: leader_rows(shown(cluster)) == as_rows, "its table to say so too")
