"""The real channels against a gRPC server of this process, in front of the fake cluster."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

import paramserver
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import ERROR_METADATA_KEY, Refusal
from paramserver.wire.frames import decode_push, encode_block
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import BLOCKS, applied_once, gradients, initial, model_of, until
from worker import errors
from worker.network import Method, PushMethod

REQUESTS = {
    Method.DESCRIBE_CLUSTER: pb.DescribeClusterRequest,
    Method.OPEN_SESSION: pb.OpenSessionRequest,
    Method.CREATE_MODEL: pb.CreateModelRequest,
    Method.DESCRIBE_MODEL: pb.DescribeModelRequest,
    Method.CLAIM_INITIALIZATION: pb.ClaimInitializationRequest,
    Method.OPEN_MODEL: pb.OpenModelRequest,
    Method.CLAIM_RANK: pb.ClaimRankRequest,
    Method.RENEW_LEASE: pb.RenewLeaseRequest,
    Method.RELEASE_RANK: pb.ReleaseRankRequest,
}


class Front(grpc.GenericRpcHandler):
    """One node of a fake cluster behind a socket."""

    def __init__(self, cluster: FakeCluster, node: int) -> None:
        self._cluster = cluster
        self._node = node
        self.server = self._start(0)

    def _start(self, port: int) -> grpc.Server:
        server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((self,))
        self.port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        return server

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def die(self) -> None:
        self._cluster.kill(self._node)
        self.server.stop(0).wait()

    def come_back(self) -> None:
        self._cluster.restart(self._node)
        self.server = self._start(self.port)

    def service(self, call: Any) -> Any:
        name = call.method.removeprefix("/paramserver.v1.")
        if name in tuple(Method):
            method = Method(name)
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: self._guard(context, self._cluster.call, self.address, method, request),
                request_deserializer=REQUESTS[method].FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        if name in tuple(PushMethod):
            return grpc.stream_stream_rpc_method_handler(
                lambda frames, context: self._push(PushMethod(name), frames, context)
            )
        if name == "Data/Pull":
            return grpc.unary_stream_rpc_method_handler(self._pull, request_deserializer=pb.PullRequest.FromString)
        if name == "Watch/Announcements":
            return grpc.unary_stream_rpc_method_handler(
                self._watch,
                request_deserializer=pb.AnnouncementsRequest.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        return None

    def _guard(self, context: grpc.ServicerContext, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Refusal as refusal:
            _abort(context, refusal)

    def _push(self, method: PushMethod, frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        answers: queue.Queue[Any] = queue.Queue()
        stream = self._cluster.push(self.address, method, answers.put)

        def take() -> None:
            try:
                for data in frames:
                    stream.take(decode_push(data))
            except grpc.RpcError:
                pass

        threading.Thread(target=take, daemon=True).start()
        context.add_callback(lambda: answers.put(None))
        while (item := answers.get()) is not None:
            if isinstance(item, Refusal):
                _abort(context, item)
            yield encode_block(item)

    def _pull(self, request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        for frame in self._guard(context, self._cluster.pull, self.address, request):
            yield encode_block(frame)

    def _watch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        news: queue.Queue[Any] = queue.Queue()
        self._guard(context, self._cluster.watch, self.address, news.put)
        context.add_callback(lambda: news.put(None))
        while (item := news.get()) is not None:
            if isinstance(item, Refusal):
                _abort(context, item)
            yield item


def _abort(context: grpc.ServicerContext, refusal: Refusal) -> None:
    context.set_trailing_metadata(((ERROR_METADATA_KEY, refusal.detail()),))
    context.abort(grpc.StatusCode[refusal.code], refusal.message)


@pytest.fixture
def fronts() -> Iterator[tuple[FakeCluster, list[Front]]]:
    cluster = FakeCluster()
    started = [Front(cluster, node) for node in cluster.addresses]
    for node, front in enumerate(started, start=1):
        cluster.addresses[node] = front.address
    yield cluster, started
    for front in started:
        front.server.stop(0)


def test_a_run_over_sockets(fronts: tuple[FakeCluster, list[Front]]) -> None:
    cluster, started = fronts
    servers = ",".join(front.address for front in started)
    with paramserver.connect(servers, timeout=10) as client:
        model = model_of(client)
        assert np.array_equal(model.pull()["a"], initial()["a"])
        for step in range(5):
            after = model.push_pull(gradients(step)).result()
        assert after.versions == (5,) * BLOCKS
        with pytest.raises(errors.Gone) as caught:
            model.pull(version=1)
        assert caught.value.version == 5
        assert applied_once(cluster, 5)
        assert client.unreachable() == {}


def test_a_killed_server_over_sockets(fronts: tuple[FakeCluster, list[Front]]) -> None:
    """Its streams break, the others announce who leads now, and what was not acknowledged is sent there."""
    cluster, started = fronts
    with paramserver.connect([started[0].address], timeout=10) as client:
        model = model_of(client)
        model.push_pull(gradients(0)).result()
        cluster.swallow_replies = BLOCKS
        future = model.push_pull(gradients(1))
        until(lambda: len(cluster.applied) == 2 * BLOCKS)
        started[0].die()
        for group in (0, 1):
            cluster.elect(group, 2)
        for group in (2, 3):
            cluster.elect(group, 5 - group)
        assert future.result().version == 2
        until(lambda: list(client.unreachable()) == [1])
        started[0].come_back()
        cluster.elect(1, 1)
        assert model.push_pull(gradients(2)).result().version == 3
        assert applied_once(cluster, 3)
        until(lambda: client.unreachable() == {})


def test_a_refusal_keeps_its_detail_on_the_way(fronts: tuple[FakeCluster, list[Front]]) -> None:
    _, started = fronts
    with paramserver.connect(started[1].address, timeout=10) as one, paramserver.connect(started[2].address) as other:
        model_of(one, ranks=2)
        with pytest.raises(errors.RankTaken) as caught:
            model_of(other, ranks=2)
        assert (caught.value.holder, caught.value.lease_ends_ms) == ("session 1", 7000)


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(errors.Unavailable, match=r"no server answered within 0.3 s \(127.0.0.1:1: ") as caught:
        paramserver.connect("127.0.0.1:1", timeout=0.3)
    assert "\n" not in str(caught.value)
