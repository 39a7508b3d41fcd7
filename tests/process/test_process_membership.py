"""Nodes come, go and die for good, and groups are moved and handed over by the commands people use, while workers
train: they end with the bits of the faultless run (RULES I1-I3, C6; FAULTS 22, 23)."""

import contextlib
import io
import json
from pathlib import Path

import pytest

from paramserver.cli import entry
from paramserver.lab.cluster import CATALOGUE_GROUP, Cluster, ServerOptions
from paramserver.lab.status import NodeSnapshot
from tests.process.small import SMALL
from tests.process.training import RANKS, Training

STEPS = 250
GROUPS = range(4)


def started(cluster: Cluster) -> Training:
    training = Training(cluster, STEPS)
    training.until(3)
    return training


def do(cluster: Cluster, *words: str) -> str:
    """A command that ends well; what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = entry.run([*words, "--servers", cluster.running_endpoints])
    assert code == 0, (words, said.getvalue())
    return said.getvalue()


def homes(cluster: Cluster) -> dict[int, set[int]]:
    """group -> nodes that hold a member of it."""
    groups = json.loads(do(cluster, "group", "list", "--json").splitlines()[-1])["groups"]
    return {group["group"]: {member["node"] for member in group["members"]} for group in groups}


def states(cluster: Cluster) -> dict[int, str]:
    nodes = json.loads(do(cluster, "node", "list", "--json").splitlines()[-1])["nodes"]
    return {node["node"]: node["state"] for node in nodes}


def hosted(cluster: Cluster, node: int) -> set[int]:
    """Groups with a replica there, a member or not."""
    answer = cluster.status(node)
    assert isinstance(answer, NodeSnapshot), answer
    return {group.group for group in answer.groups}


@pytest.mark.timeout(200)
def test_dead_node_whose_disk_is_gone_is_replaced_during_training(tmp_path: Path) -> None:
    patient = ServerOptions(flags=(*SMALL.flags, "--lease-ms", "60000"))
    with Cluster(folder=tmp_path, options=patient) as cluster:
        training = started(cluster)
        dead = cluster.leader_of(1)
        cluster.kill(dead)
        training.until(training.completed() + RANKS + 1)  # without that node
        cluster.workers[0].pause()  # there should be steps left for what follows
        place = f"{dead}={cluster.join(dead)}"

        refused = cluster.command("node", "add", place)
        assert refused.returncode == 3
        assert f"paramserver node replace {dead} {place}" in refused.stderr, "the command that repairs it"
        foreseen = do(cluster, "node", "replace", str(dead), place, "--dry-run")
        assert "needs 2; up: " in foreseen
        assert hosted(cluster, dead) == set()

        cluster.workers[0].resume()
        do(cluster, "node", "replace", str(dead), place)
        assert training.completed() < STEPS, "it was over before the node was replaced"
        assert homes(cluster) == {group: {1, 2, 3} for group in GROUPS}
        assert hosted(cluster, dead) == set(GROUPS)
        training.finish()
        cluster.kill(next(node for node in cluster.servers if node != dead))
        cluster.await_leaders(GROUPS)  # the new replicas vote


@pytest.mark.timeout(200)
def test_node_of_leaders_is_drained_and_removed_during_training(tmp_path: Path) -> None:
    with Cluster(folder=tmp_path, options=SMALL) as cluster:
        leaving = cluster.leader_of(CATALOGUE_GROUP)
        do(cluster, "node", "add", f"4={cluster.join(4)}")
        training = started(cluster)
        do(cluster, "node", "drain", str(leaving))
        assert training.completed() < STEPS, "it was over before the node was drained"
        assert all(leaving not in nodes and 4 in nodes for nodes in homes(cluster).values())
        cluster.wait_for(lambda: not hosted(cluster, leaving), f"the replicas on node {leaving} to be deleted")
        assert states(cluster)[leaving] == "draining"

        do(cluster, "node", "remove", str(leaving))
        assert states(cluster)[leaving] == "removed"
        assert cluster.terminate(leaving) == 0
        cluster.servers[leaving].start()
        cluster.servers[leaving].wait(20)
        assert cluster.servers[leaving].code == 2
        assert "was removed from the cluster" in cluster.servers[leaving].last_words()
        training.finish()


@pytest.mark.timeout(200)
def test_leadership_moves_by_command_and_before_a_stop_during_training(tmp_path: Path) -> None:
    never = ServerOptions(flags=(*SMALL.flags, "--prefer-after-ms", "0"))
    with Cluster(folder=tmp_path, options=never) as cluster:
        training = started(cluster)
        for target in (2, 3, 1):
            do(cluster, "group", "transfer", "1", "--to", str(target))
            assert cluster.leader_of(1) == target
        do(cluster, "node", "drain", "2", "--leaders-only")
        assert 2 not in cluster.await_leaders(GROUPS).values()

        stopping = cluster.leader_of(1)
        before = terms(cluster)
        led = {group for group, leader in cluster.await_leaders(GROUPS).items() if leader == stopping}
        assert cluster.terminate(stopping) == 0
        assert training.completed() < STEPS, "it was over before the leader was stopped"
        cluster.await_leaders(GROUPS)
        after = terms(cluster)
        assert {group: after[group] - before[group] for group in led} == dict.fromkeys(led, 1), "one hand-over each"
        assert "still led here" not in cluster.servers[stopping].output()
        training.finish()


def terms(cluster: Cluster) -> dict[int, int]:
    answers = [answer for answer in cluster.statuses() if isinstance(answer, NodeSnapshot)]
    return {group: max(state.term for node in answers if (state := node.group(group))) for group in GROUPS}
