"""Calls between simulated processes: the real handlers of a server's services, and what a client of them needs, without
gRPC and sockets.

Owns the bytes under way between a call's two ends. Invariants: each direction in order; a connection that breaks ends
the call at both ends, each at its own time, or (the client's) only by its deadline; the server's handlers see a context
like gRPC's and the client sees `Refusal`s. Must not know: what is called.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio

from consensus.core.interface import NodeId
from consensus.simulation.cluster import Cluster
from consensus.simulation.loop import VirtualLoop
from consensus.simulation.profile import between
from paramserver.lab.simulation.line import Line
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import ERROR_METADATA_KEY, Refusal
from paramserver.wire.frames import BlockFrame, PushFrame, decode_block, encode_push
from worker.channels import PREFIX, RESPONSES
from worker.network import Method, PushMethod, StreamEnded


def unavailable(why: str) -> Refusal:
    """What gRPC makes of a connection that is not there."""
    return Refusal.from_detail("UNAVAILABLE", why, None)


class Service:
    """What one life of a node serves: the handlers of all its services, on its event loop."""

    def __init__(self, loop: VirtualLoop, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self.loop = loop
        self._handlers = handlers

    def method(self, name: str) -> Any:
        details = SimpleNamespace(method=name, invocation_metadata=())
        return next((found for one in self._handlers if (found := one.service(details)) is not None), None)


class ServerContext:
    """The handler's end of a call, by shape a `grpc.aio.ServicerContext`."""

    def __init__(self, call: Call, timeout_s: float | None) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._deadline = None if timeout_s is None else self._loop.time() + timeout_s
        self._requests: deque[bytes] = deque()
        self._done = False
        self._arrived = asyncio.Event()

    def take(self, data: bytes | None) -> None:
        """None: the client sends no more."""
        if data is None:
            self._done = True
        else:
            self._requests.append(data)
        self._arrived.set()

    async def read(self) -> Any:
        while not self._requests:
            if self._done:
                return grpc.aio.EOF
            self._arrived.clear()
            await self._arrived.wait()
        return self._requests.popleft()

    async def write(self, data: Any) -> None:
        self._call.say(lambda client: client.took(bytes(data)))

    async def send_initial_metadata(self, metadata: Any) -> None:
        return None

    async def abort(self, code: grpc.StatusCode, details: str = "", metadata: Any = ()) -> None:
        raw = next((value for key, value in metadata if key == ERROR_METADATA_KEY), None)
        self._call.say(lambda client: client.ended(Refusal.from_detail(code.name, details, raw)))
        raise grpc.aio.AbortError

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._loop.time())


class ClientEnd:
    """The caller's end of a call, on the caller's loop."""

    def __init__(self) -> None:
        self._replies: deque[bytes] = deque()
        self._ended = False
        self._refusal: Refusal | None = None
        self._changed = asyncio.Event()

    def took(self, data: bytes) -> None:
        if not self._ended:
            self._replies.append(data)
            self._changed.set()

    def ended(self, refusal: Refusal | None) -> None:
        if not self._ended:
            self._ended, self._refusal = True, refusal
            self._changed.set()

    @property
    def over(self) -> bool:
        return self._ended

    async def reply(self) -> bytes | None:
        """The next one; None after the last. Raises Refusal."""
        while not self._replies:
            if self._ended:
                if self._refusal is not None:
                    raise self._refusal
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._replies.popleft()


class Call:
    """One call over a line of its own."""

    def __init__(self, caller: Caller, node: NodeId, method: str, timeout_s: float | None) -> None:
        self.client = ClientEnd()
        self._caller = caller
        self._context: ServerContext | None = None
        self._task: asyncio.Task[None] | None = None
        self._early: list[bytes | None] = []
        host = caller.cluster.nodes[node]
        self._line = Line(
            caller.cluster,
            host,
            caller.random,
            rank_told=lambda: caller.later(0, lambda: self.client.ended(unavailable("the connection broke"))),
            server_told=self._hang_up,
        )
        caller.keep(self._line)
        if self._line.broken:
            delay = between(caller.random, caller.cluster.network.profile.delay_us)
            caller.later(delay, lambda: self.client.ended(unavailable("connection refused")))
            return
        self._line.up(f"{caller.name} calls {method}", lambda: self._arrive(node, method, timeout_s))

    def send(self, data: bytes | None) -> None:
        self._line.up("", lambda: self._take(data))

    def close(self) -> None:
        """The caller is not interested any more."""
        self._line.close()

    # --- in the server's process

    def _arrive(self, node: NodeId, method: str, timeout_s: float | None) -> None:
        service = self._caller.service(node)
        handler = service.method(PREFIX + method) if service is not None else None
        if service is None or handler is None:
            self.say(lambda client: client.ended(unavailable("not serving yet")))
            return
        with service.loop.running():
            self._context = ServerContext(self, timeout_s)
            self._task = service.loop.create_task(self._serve(handler, self._context), name=method)
        for data in self._early:
            self._context.take(data)

    def _take(self, data: bytes | None) -> None:
        if self._context is None:
            self._early.append(data)
        else:
            self._context.take(data)

    async def _serve(self, handler: Any, context: ServerContext) -> None:
        try:
            if handler.unary_unary is not None:
                answer = await handler.unary_unary(await context.read(), context)
                await context.write(answer)
            elif handler.unary_stream is not None:
                await handler.unary_stream(await context.read(), context)
            else:
                await handler.stream_stream(None, context)
        except grpc.aio.AbortError:
            return
        self.say(lambda client: client.ended(None))

    def _hang_up(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # --- to the caller

    def say(self, what: Callable[[ClientEnd], None]) -> None:
        self._line.down(lambda: self._caller.later(0, lambda: what(self.client)))


class Caller:
    """Who calls: a worker, or a node of the cluster. `later` runs something in its process; `service(node)` is what
    that node serves now; `keep` is told of every line."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        source: random.Random,
        *,
        later: Callable[[int, Callable[[], None]], None],
        service: Callable[[NodeId], Service | None],
        keep: Callable[[Line], None],
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.random = source
        self.later = later
        self.service = service
        self.keep = keep

    async def unary(self, node: NodeId, method: str, request: bytes, timeout_s: float) -> bytes:
        """Raises Refusal."""
        call = Call(self, node, method, timeout_s)
        call.send(request)
        call.send(None)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await call.client.reply()
        except TimeoutError:
            raise Refusal.from_detail("DEADLINE_EXCEEDED", f"no answer within {timeout_s:g} s", None) from None
        finally:
            call.close()
        if answer is None:
            raise unavailable("the call ended without an answer")
        return answer


class SimulatedPushStream:
    """`worker.network.PushStream`."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def send(self, frame: PushFrame) -> None:
        if self._call.client.over:
            raise StreamEnded
        self._call.send(bytes(encode_push(frame)))
        await asyncio.sleep(0)

    async def receive(self) -> BlockFrame | None:
        data = await self._call.client.reply()
        return None if data is None else decode_block(data)

    def cancel(self) -> None:
        self._call.close()


class SimulatedNetwork:
    """`worker.network.Network`. A node's address is its number."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def call(self, address: str, method: Method, request: Any, timeout_s: float) -> Any:
        answer = await self._caller.unary(node_of(address), method, request.SerializeToString(), timeout_s)
        return RESPONSES[method](answer)

    def push(self, address: str, method: PushMethod) -> SimulatedPushStream:
        return SimulatedPushStream(Call(self._caller, node_of(address), method, None))

    async def pull(self, address: str, request: Any, timeout_s: float) -> AsyncGenerator[BlockFrame, None]:
        async for data in self._replies(address, "Data/Pull", request, timeout_s):
            yield decode_block(data)

    async def announcements(self, address: str, request: Any) -> AsyncGenerator[Any, None]:
        async for data in self._replies(address, "Watch/Announcements", request, None):
            yield pb.Announcement.FromString(data)

    async def _replies(
        self, address: str, method: str, request: Any, timeout_s: float | None
    ) -> AsyncGenerator[bytes, None]:
        call = Call(self._caller, node_of(address), method, timeout_s)
        call.send(request.SerializeToString())
        call.send(None)
        try:
            while (data := await call.client.reply()) is not None:
                yield data
        finally:
            call.close()

    def reachable(self, address: str) -> bool:
        return self._caller.cluster.nodes[node_of(address)].running

    async def close(self) -> None:
        return None


def address_of(node: NodeId) -> str:
    return f"node{node}:7000"


def node_of(address: str) -> NodeId:
    return int(address.removeprefix("node").removesuffix(":7000"))
