"""Clients that are gone, over real gRPC: neither a defect of the server nor a refusal, and nothing of them stays."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Any

import grpc
import grpc.aio
import pytest

from paramserver.observe.counters import Counters
from paramserver.rpc import calls as calls_module
from paramserver.rpc.admission import Admission
from paramserver.rpc.calls import Calls
from paramserver.rpc.limits import Limits
from paramserver.v1 import paramserver_pb2 as pb

PIECE = bytes(64 << 10)
# In a process of its own: on the server's loop it would be gone only when the server has seen it.
CLIENT = """
import asyncio, contextlib, grpc.aio, os, signal, sys

async def once(address, method, goes):
    channel = grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
    await channel.channel_ready()
    timeout_s = 0.2 if goes == "deadline" else None
    if method == "Pull":
        call = channel.unary_stream("/t.S/Pull")(b"", timeout=timeout_s)
    else:
        call = channel.stream_stream("/t.S/Push")(timeout=timeout_s)
        await call.write(b"x")
    with contextlib.suppress(grpc.aio.AioRpcError):  # on a slow machine the deadline has passed
        await call.read()
    if goes == "deadline":
        await call.code()
    elif goes == "cancel":
        await asyncio.sleep(0.01)
        call.cancel()
    elif goes == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    await channel.close()

async def main(address, method, goes):
    for _ in range(3):
        await once(address, method, goes)

asyncio.run(main(*sys.argv[1:]))
"""


class Watched(Admission):
    """Says when a call is over."""

    def __init__(self) -> None:
        super().__init__(Limits())
        self.left = asyncio.Event()

    def leave(self, peer: str) -> None:
        super().leave(peer)
        self.left.set()


class Server:
    """Writes without end on each stream."""

    def __init__(self) -> None:
        self.counters, self.admission = Counters(), Watched()
        self.streams = 0
        calls = Calls(self.counters, self.admission)
        methods = {"Pull": calls.server_stream(pb.PullRequest, self._pull), "Push": calls.stream(self._push)}
        self.server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", methods),))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def _pull(self, _: Any, context: Any) -> None:
        await self._write(context)

    async def _push(self, context: Any) -> None:
        await context.read()
        await self._write(context)

    async def _write(self, context: Any) -> None:
        self.streams += 1
        while True:
            await context.write(PIECE)

    async def left_alone(self) -> None:
        while self.admission.calls:
            self.admission.left.clear()
            await self.admission.left.wait()


@pytest.mark.parametrize("method", ["Pull", "Push"])
@pytest.mark.parametrize("goes", ["deadline", "cancel", "close", "kill"])
def test_a_client_that_goes_in_the_middle_of_a_write_is_no_defect(
    goes: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC raised ExecuteBatchError out of the write, which was logged with a traceback and counted as INTERNAL."""

    async def story() -> None:
        server = Server()
        await server.server.start()
        async with asyncio.timeout(20):
            arguments = (server.address, method, goes)
            client = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, *arguments)
            assert await client.wait() == (-signal.SIGKILL if goes == "kill" else 0)
            await server.left_alone()
        await server.server.stop(0)
        assert server.streams >= 1
        assert server.admission.connections == 0
        assert set(server.counters.all()) <= {"calls_broken_off"}

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert caplog.text == ""


def test_a_server_that_stops_in_the_middle_of_a_write_logs_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        server = Server()
        await server.server.start()
        async with asyncio.timeout(20), grpc.aio.insecure_channel(server.address) as channel:
            call: Any = channel.unary_stream("/t.S/Pull")(b"")
            assert await call.read() == PIECE
            await server.server.stop(0)
            await server.left_alone()
        assert set(server.counters.all()) <= {"calls_broken_off"}

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert "handler failed" not in caplog.text


def test_a_write_that_fails_for_a_client_who_is_there_is_a_defect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(calls_module, "GONE_MS", 10)

    class Context:
        status: grpc.StatusCode | None = None

        def peer(self) -> str:
            return "ipv4:127.0.0.1:9"

        async def write(self, data: bytes) -> None:
            raise grpc.aio.InternalError("Failed grpc_call_start_batch: 8")

        async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
            self.status = code
            raise grpc.aio.AbortError(details)

    async def handler(context: Any) -> None:
        await context.write(b"")

    async def story() -> None:
        counters, context = Counters(), Context()
        with pytest.raises(grpc.aio.AbortError, match="a defect of the server"):
            await Calls(counters).stream(handler).stream_stream(None, context)
        assert context.status is grpc.StatusCode.INTERNAL
        assert counters.all() == {"calls_broken_off": 1, "refused_internal": 1}

    asyncio.run(story())
    assert "start_batch: 8" in caplog.text
