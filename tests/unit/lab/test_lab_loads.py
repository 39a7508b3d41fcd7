"""Sums over what nodes say of themselves, and how they are shown."""

from __future__ import annotations

import json
from dataclasses import replace

from paramserver.cli import load as shown
from paramserver.cli import status as command
from paramserver.lab import loads
from paramserver.lab.status import GroupSnapshot, LoadSnapshot, NodeSnapshot, Unreachable


def state(group: int, node: int, *, leader: int, blocks: int, load: LoadSnapshot | None = None) -> GroupSnapshot:
    return GroupSnapshot(
        group=group,
        replica=node,
        role="leader" if leader == node else "follower",
        term=1,
        leader_node=leader,
        commit_index=1,
        applied_index=1,
        last_index=1,
        snapshot_index=0,
        flushed_index=1,
        problem="",
        state_bytes=blocks * 3_000_000,
        block_count=blocks,
        weight_bytes=blocks * 1_000_000,
        load=load or LoadSnapshot(),
    )


def node(number: int, *groups: GroupSnapshot, zone: str = "") -> NodeSnapshot:
    return NodeSnapshot(number, f"h:{number}", "cafe", "00", 1, "0", "fsync", groups, (), (), zone=zone)


CATALOGUE = replace(state(0, 1, leader=1, blocks=0), state_bytes=77)
LED = LoadSnapshot(pushes=10, pushed_bytes=500, returned_bytes=400, pushes_per_s=2.0, pushed_bytes_per_s=2_500_000.0)
READ = LoadSnapshot(pulls=3, pulled_bytes=30, pulls_per_s=1.5, pulled_bytes_per_s=1000.0)
NODES = (
    node(1, CATALOGUE, state(1, 1, leader=1, blocks=4, load=LED), state(2, 1, leader=2, blocks=5), zone="east"),
    node(2, state(1, 2, leader=1, blocks=4, load=READ), state(2, 2, leader=2, blocks=5, load=LED)),
    Unreachable("h:3", "connection refused", 3),
)


def test_a_groups_bytes_count_once_and_its_load_over_all_replicas() -> None:
    one, two = loads.by_group(NODES)
    assert (one.group, one.leader, one.blocks, one.weight_bytes, one.state_bytes) == (1, 1, 4, 4_000_000, 12_000_000)
    assert (one.load.pushes, one.load.pulls, one.load.pulled_bytes, one.load.pushed_bytes) == (10, 3, 30, 500)
    assert (two.group, two.leader, two.blocks, two.load.pushes) == (2, 2, 5, 10)


def test_a_group_without_a_leader_is_told_by_who_holds_most() -> None:
    (one,) = loads.by_group((node(1, state(1, 1, leader=0, blocks=1)), node(2, state(1, 2, leader=0, blocks=2))))
    assert (one.leader, one.blocks) == (0, 2)


def test_a_node_sums_what_it_holds_and_what_it_leads() -> None:
    one, two = loads.by_node(NODES)
    assert (one.node, one.zone, one.groups, one.leads, one.blocks, one.blocks_led) == (1, "east", 2, (1,), 9, 4)
    assert (one.weight_bytes_led, one.state_bytes, one.load.pushes) == (4_000_000, 27_000_000, 10)
    assert (two.leads, two.blocks_led, two.load.pushes, two.load.pulls) == ((2,), 5, 10, 3)


def test_both_are_in_the_text_and_in_the_json() -> None:
    lines = shown.lines(NODES)
    groups = next(line.split() for line in lines if line.startswith("1  "))
    assert groups == ["1", "1", "4", "4.0", "MB", "12.0", "MB", "2", "2.5", "MB", "0", "B", "1.0", "kB"]
    east = next(line for line in lines if "east" in line)
    assert east.split()[:7] == ["1", "east", "2", "1", "4", "4.0", "MB"]
    assert all(line in command.lines(NODES) for line in lines)
    told = json.loads(json.dumps(command.as_json(NODES)))["load"]
    assert [one["weight_bytes"] for one in told["groups"]] == [4_000_000, 5_000_000]
    assert told["nodes"][0]["leads"] == [1]
    assert told["groups"][0]["load"]["pulled_bytes"] == 30
