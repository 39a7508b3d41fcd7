"""Questions to nodes, against a server that says what we want."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from paramserver.lab import status
from paramserver.lab.status import NodeSnapshot, Unreachable
from paramserver.v1 import paramserver_pb2, paramserver_pb2_grpc


class Admin(paramserver_pb2_grpc.AdminServicer):
    def Status(self, request: Any, context: Any) -> Any:
        group = paramserver_pb2.GroupState(group=1, replica=2, role="leader", term=4, commit_index=9, applied_index=8)
        if request.blocks:
            group.blocks.add(model=1, block=5, version=7, digest="ab")
        answer = paramserver_pb2.NodeStatus(node=2, cluster=b"\x01\x02", incarnation=3, groups=[group])
        answer.counters["steps"] = 11
        model = answer.models.add(model=1, name="digits", open=True)
        model.ranks.add(rank=0, held=True)
        model.shards.add(group=1, first_block=5, blocks=1)
        return answer


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, options=(("grpc.so_reuseport", 0),))
        paramserver_pb2_grpc.add_AdminServicer_to_server(Admin(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_a_node_and_one_that_is_not_there(address: str) -> None:
    node, nobody = status.ask_all((address, "127.0.0.1:1"), blocks=True)
    assert isinstance(node, NodeSnapshot)
    assert (node.node, node.cluster, node.incarnation, node.counters) == (2, "0102", 3, {"steps": 11})
    group = node.group(1)
    assert group is not None
    assert group.leads
    assert (group.term, group.commit_index, group.applied_index) == (4, 9, 8)
    assert status.block_states((node, nobody), 1) == {(1, 5): {2: status.BlockSnapshot(1, 5, 7, "ab")}}
    assert node.models[0].shards == (status.ShardSnapshot(1, 5, 1),)
    assert isinstance(nobody, Unreachable)
    assert nobody.cause == "connection refused: no server listens there"
    assert status.leaders((node, nobody)) == {1: 2}


def test_a_server_that_does_not_know_the_question() -> None:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        answer = status.ask(f"127.0.0.1:{port}")
        server.stop(None).wait()
    assert isinstance(answer, Unreachable)
    assert answer.cause.startswith("UNIMPLEMENTED: ")


def test_nobody_asked() -> None:
    assert status.ask_all(()) == ()
