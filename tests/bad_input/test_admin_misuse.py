"""Admin misuse (FAULTS, bad input 26): FAILED_PRECONDITION with the arithmetic of the quorum, and nothing changes; on
the command line exit code 3, the cause and a hint, each in one line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from consensus.core.interface import Configuration, Home
from paramserver.catalogue.administration import (
    AddNode,
    Administration,
    CancelMove,
    DrainNode,
    MoveReplica,
    RemoveNode,
    ReplaceNode,
    TransferTo,
    Wish,
)
from paramserver.lab.cluster import Cluster
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.v1 import paramserver_pb2_grpc as services
from paramserver.wire.errors import Refusal
from tests.unit.catalogue.shape import FakeCluster

PRECONDITION = "FAILED_PRECONDITION"

# --- the admin service's rules, on a cluster of plain values


def healthy() -> FakeCluster:
    return FakeCluster(3)


def one_node() -> FakeCluster:
    return FakeCluster(1)


def third_is_dead() -> FakeCluster:
    cluster = FakeCluster(3)
    cluster.down = {3}
    return cluster


def majority_of_a_group_is_dead() -> FakeCluster:
    """Five nodes: group 0 goes on with three of five, group 2 (on 2, 3, 4) is left with one of three."""
    cluster = FakeCluster(5)
    cluster.down = {3, 4}
    return cluster


def learner_on_a_fourth() -> FakeCluster:
    cluster = with_a_spare()
    one = cluster.groups[1]
    home = Home(70_000, 4, cluster.folders[4], "h:4")
    one.configuration = Configuration(one.configuration.voters, (70_000,), (), (home,), 70_001)
    return cluster


def with_a_spare() -> FakeCluster:
    cluster = FakeCluster(3)
    admin = administration(cluster)
    plan = asyncio.run(plan_of(admin, cluster.start(4).node, cluster))
    assert plan.reshape is not None
    assert cluster.reshape(plan.reshape).ok
    return cluster


async def plan_of(admin: Administration, node: int, cluster: FakeCluster) -> Any:
    return await admin.plan(AddNode(node, cluster.addresses[node]))


def one_is_being_drained() -> FakeCluster:
    cluster = with_a_spare()
    plan = asyncio.run(administration(cluster).plan(DrainNode(1)))
    assert plan.reshape is not None
    assert cluster.reshape(plan.reshape).ok
    return cluster


def one_was_drained() -> FakeCluster:
    cluster = one_is_being_drained()

    async def carried_out() -> None:
        mover = cluster.mover()
        mover.poke()
        for _ in range(20_000):
            if cluster.quiet():
                break
            await asyncio.sleep(0.001)
        mover.end()

    asyncio.run(asyncio.wait_for(carried_out(), 20))
    return cluster


def administration(cluster: FakeCluster) -> Administration:
    return Administration(cluster.machine, cluster, cluster.mover(), b"c")


@pytest.mark.parametrize(
    ("make", "wish", "words"),
    [
        (one_node, RemoveNode(1), ("group 0 has 1 voter on node 1 and needs 1", "node 1 is its last voter")),
        (one_node, DrainNode(1), ("has 1 voter on node 1 and needs 1", "it is the last voter", "leaves 0 nodes")),
        (healthy, RemoveNode(2), ("has 3 voters", "needs 2; up: ", "without node 2 that leaves 2")),
        (third_is_dead, RemoveNode(2), ("needs 2; up: 1", "without node 2 that leaves 1")),
        (healthy, DrainNode(3), ("needs 2; up: 1, 2, 3", "leaves 2 nodes for 3 replicas", "add a node first")),
        (third_is_dead, DrainNode(2), ("up: 1, 2;", "leaves 1 node for 3 replicas (node 3 not answering)")),
        (one_was_drained, DrainNode(2), ("needs 2; up: ", "leaves 2 nodes for 3 replicas")),
        (third_is_dead, TransferTo(1, 3), ("node 3 does not answer", "needs 2; up: 1, 2")),
        (learner_on_a_fourth, TransferTo(1, 4), ("node 4 holds a learner of group 1", "only voters lead", "needs 2")),
        (healthy, MoveReplica(1, 1, 2), ("node 2 holds a replica of group 1 already", "nodes 1, 2, 3")),
        (healthy, ReplaceNode(3, 2), ("node 2 holds a replica of group 0 already", "needs 2; up: 1, 2, 3")),
        (majority_of_a_group_is_dead, MoveReplica(2, 3, 1), ("up: 2", "1 of 3 cannot commit a change of members")),
        (majority_of_a_group_is_dead, DrainNode(2), ("up: 1, 2, 5;", "leaves 2 nodes for 5 replicas")),
        (one_is_being_drained, DrainNode(2), ("group 0 is being moved already, to node 4",)),
        (one_is_being_drained, MoveReplica(1, 3, 4), ("group 1 is being moved already, to node 4",)),
        # What is on its way to the node would stay there, and the node would never be empty (simulation, seed 840271).
        (one_is_being_drained, DrainNode(4), ("group 0 is being moved already, to node 4",)),
        (one_is_being_drained, ReplaceNode(4, 2), ("group 0 is being moved already, to node 4",)),
    ],
)
def test_misuse_is_refused_with_the_arithmetic(
    make: Callable[[], FakeCluster], wish: Wish, words: tuple[str, ...]
) -> None:
    cluster = make()
    before = cluster.placement
    with pytest.raises(Refusal) as caught:
        asyncio.run(administration(cluster).plan(wish))
    assert caught.value.code == PRECONDITION
    for one in words:
        assert one in caught.value.message, caught.value.message
    assert cluster.placement == before


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (RemoveNode(9), "no node has the number 9; there are 1, 2, 3"),
        (DrainNode(9), "there are 1, 2, 3"),
        (ReplaceNode(3, 9), "no node has the number 9"),
        (TransferTo(1, 9), "there are 1, 2, 3"),
        (TransferTo(9, 1), "no group has the number 9"),
        (MoveReplica(9, 1, 2), "no group has the number 9"),
        (CancelMove(1), "no replica of group 1 is being moved"),
    ],
)
def test_what_does_not_exist_is_said_to_be_unknown(wish: Wish, words: str) -> None:
    with pytest.raises(Refusal, match=words) as caught:
        asyncio.run(administration(healthy()).plan(wish))
    assert caught.value.code == "NOT_FOUND"


def test_what_is_so_already_is_no_error() -> None:
    cluster = healthy()
    admin = administration(cluster)
    for wish in (TransferTo(1, 1), AddNode(1, "h:1"), ReplaceNode(3, 3, "h:3"), DrainNode(2, undo=True)):
        plan = asyncio.run(admin.plan(wish))
        assert plan.reshape is None
        assert plan.transfers == ()
        assert plan.steps[0].startswith("nothing: ")


# --- the same at running servers


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, the third one dead."""
    with Cluster(folder=tmp_path_factory.mktemp("misuse")) as running:
        running.await_leaders(range(4))
        running.kill(3)
        running.await_leaders(range(4))
        yield running


@pytest.fixture
def stub(cluster: Cluster) -> Iterator[Any]:
    with grpc.insecure_channel(cluster.addresses[cluster.leader_of(0)]) as channel:
        yield services.AdminStub(channel)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (pb.ReshapeRequest(transfer=pb.TransferTo(group=1, to_node=3)), "node 3 does not answer: group 1 has 3 voters"),
        (pb.ReshapeRequest(drain=pb.DrainNode(node=1)), "leaves 1 node for 3 replicas (node 3 not answering)"),
        (pb.ReshapeRequest(remove=pb.RemoveNode(node=1)), "without node 1 that leaves 1"),
    ],
    ids=["transfer to a dead node", "drain", "remove"],
)
def test_running_servers_refuse(stub: Any, wish: pb.ReshapeRequest, words: str) -> None:
    before = stub.Members(pb.MembersRequest(), timeout=5)
    wish.dry_run = True
    with pytest.raises(grpc.RpcError) as caught:
        stub.Reshape(wish, timeout=5)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert words in caught.value.details()
    assert "needs 2; up: " in caught.value.details()
    after = stub.Members(pb.MembersRequest(), timeout=5)
    assert (after.directory, list(after.moves), list(after.nodes)) == (before.directory, [], list(before.nodes))


@pytest.mark.parametrize(
    ("wish", "code", "field"),
    [
        (pb.ReshapeRequest(), "INVALID_ARGUMENT", "kind"),
        (pb.ReshapeRequest(add=pb.AddNode(node=4, address="nowhere")), "INVALID_ARGUMENT", "add.address"),
        (pb.ReshapeRequest(add=pb.AddNode(node=0, address="127.0.0.1:1")), "INVALID_ARGUMENT", "node"),
        (pb.ReshapeRequest(add=pb.AddNode(node=4, address="127.0.0.1:1")), PRECONDITION, "no server answers"),
        (pb.ReshapeRequest(replace=pb.ReplaceNode(node=3, by=3)), "INVALID_ARGUMENT", "replace.address"),
        (pb.ReshapeRequest(move=pb.MoveReplica(group=1, from_node=2, to_node=2)), "INVALID_ARGUMENT", "move.to_node"),
        (pb.ReshapeRequest(remove=pb.RemoveNode(node=2**32 - 1)), "NOT_FOUND", "there are 1, 2, 3"),
    ],
    ids=["no wish", "no address", "node 0", "nobody there", "no folder", "to itself", "unknown"],
)
def test_wishes_that_can_not_be_are_refused(stub: Any, wish: pb.ReshapeRequest, code: str, field: str) -> None:
    wish.dry_run = True
    with pytest.raises(grpc.RpcError) as caught:
        stub.Reshape(wish, timeout=5)
    assert (caught.value.code().name, field in caught.value.details()) == (code, True), caught.value.details()


def test_wish_without_a_session_changes_nothing(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Reshape(pb.ReshapeRequest(remove=pb.RemoveNode(node=3)), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "secret" in caught.value.details()


def test_the_command_line_says_it_in_two_lines_with_the_documented_code(cluster: Cluster) -> None:
    refused = cluster.command("group", "transfer", "1", "--to", "3")
    assert refused.returncode == 3
    assert refused.stdout == ""
    cause, hint = refused.stderr.splitlines()
    assert "needs 2; up: " in cause
    assert hint.startswith("hint: ")
    unknown = cluster.command("node", "remove", "9")
    assert (unknown.returncode, "there are 1, 2, 3" in unknown.stderr) == (2, True)
