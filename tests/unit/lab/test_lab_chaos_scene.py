"""When a cluster counts as whole again: everybody answers, every group is led, every member is caught up and sound."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from paramserver.lab.chaos.scene import BEHIND_MAX, Scene
from paramserver.lab.errors import DeadlinePassed, Died
from paramserver.lab.status import Answer, GroupSnapshot, MemberSnapshot, NodeSnapshot, Unreachable

LEADER = GroupSnapshot(
    group=1, replica=1, role="leader", term=4, leader_node=1, commit_index=90, applied_index=90, last_index=91,
    snapshot_index=50, flushed_index=91, problem="", state_bytes=10,
    members=tuple(MemberSnapshot(node, node, "voter", 90) for node in (1, 2, 3)),
)  # fmt: skip
WELL = tuple(
    NodeSnapshot(
        node, f"h:{node}", "cafe", "00", 2, "0.1.0", "fsync",
        (LEADER if node == 1 else replace(LEADER, replica=node, role="follower"),), (), (),
    )
    for node in (1, 2, 3)
)  # fmt: skip


def second(**changes: Any) -> tuple[Answer, ...]:
    node = WELL[1]
    return (WELL[0], replace(node, groups=(replace(node.groups[0], **changes),)), WELL[2])


def scene(answers: tuple[Answer, ...], *, running: bool = True) -> Scene:
    server = SimpleNamespace(running=running, code=70, last_words=lambda: "first\nlast")
    cluster: Any = SimpleNamespace(
        servers=dict.fromkeys((1, 2, 3), server), statuses=lambda **how: answers, addresses={}
    )  # fmt: skip
    load: Any = SimpleNamespace()
    return Scene(cluster, load)


def missing(answers: tuple[Answer, ...], *, running: bool = True) -> str:
    return scene(answers, running=running).not_whole()


def test_a_cluster_in_which_nothing_is_missing_is_whole() -> None:
    assert missing(WELL) == ""
    assert missing(second(applied_index=90 - BEHIND_MAX)) == ""


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((*WELL[:2], Unreachable("h:3", "no")), "nodes [3] give no answer"),
        (tuple(replace(node, groups=(replace(LEADER, role="follower"),)) for node in WELL), "group 1 has no leader"),
        (second(problem="damaged"), "group 1 on node 2: damaged"),
        (second(forgetful=True), "group 1 on node 2: forgetful"),
        (second(distrusted="odd"), "group 1 on node 2: odd"),
        (second(storage_stalled=True), "group 1 on node 2: its disk stands still"),
        (second(applied_index=90 - BEHIND_MAX - 1), "group 1 on node 2 is at 69 of 90"),
        ((WELL[0], replace(WELL[1], groups=()), WELL[2]), "group 1 has a member on node 2, which holds no replica"),
        ((WELL[0], replace(WELL[1], disk_full=True), WELL[2]), "group 1 on node 2: its disk is full"),
    ],
)
def test_what_is_missing_is_named(answers: tuple[Answer, ...], said: str) -> None:
    assert missing(answers).startswith(said)


def test_a_server_that_ended_is_told_with_its_last_words() -> None:
    assert missing(WELL, running=False) == "server 1 ended with 70: last"


def test_a_server_that_ended_is_not_waited_for() -> None:
    """Nobody starts it again while the nemesis waits."""
    with pytest.raises(Died, match="server 1 ended with 70: last"):
        scene(WELL, running=False).await_whole(3600.0)
    scene(WELL).await_whole(0.0)
    with pytest.raises(DeadlinePassed, match="forgetful"):
        scene(second(forgetful=True)).await_whole(0.0)
