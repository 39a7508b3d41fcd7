"""A client in a process of its own: keeps so many commands in flight, and says what it saw as one line of JSON.

    python -m benchmarks.commits.client --mode stream --address HOST:PORT --size 100 --inflight 32 --seconds 3

`stream`: commands that may be sent together travel in one message (up to `JOIN_BYTES_MAX`), and so do answers.
`unary`: a call each. `etcd`: a Put each, through etcd's own gRPC API. Latency is from just before a command is sent to
its answer.
Owns the load and its clock. Must not know: who starts servers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from benchmarks.commits import peer_etcd, wire
from benchmarks.common import results
from consensus.storage.checksum import crc32c
from consensus.transport.grpc.arguments import client_arguments
from consensus.transport.options import TransportOptions
from paramserver.wire.allocator import keep_memory

JOIN_BYTES_MAX = 1 << 20
"""Of commands joined into one message; a longer one goes alone."""
TIMEOUT_S = 60.0
Call: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"


class Window:
    """What was answered between the end of the warm-up and the end of the measurement."""

    def __init__(self, warm_up_s: float, seconds: float) -> None:
        now = time.perf_counter()
        self.begin_s, self.end_s = now + warm_up_s, now + warm_up_s + seconds
        self.latencies_s: list[float] = []
        self._first_cpu_s: float | None = None

    def over(self, now_s: float) -> bool:
        return now_s >= self.end_s

    def answered(self, began_s: float, now_s: float) -> None:
        if self.begin_s <= now_s < self.end_s:
            if self._first_cpu_s is None:
                self._first_cpu_s = time.process_time()
            self.latencies_s.append(now_s - began_s)

    def result(self, size: int) -> dict[str, Any]:
        seconds = self.end_s - self.begin_s
        count = len(self.latencies_s)
        milliseconds = [one * 1000 for one in self.latencies_s]
        cpu_s = time.process_time() - (self._first_cpu_s or 0.0)
        return {
            "operations": count,
            "ops_per_s": round(count / seconds, 1),
            "mb_per_s": round(count * size / seconds / 1e6, 2),
            "p50_ms": results.percentile(milliseconds, 0.5),
            "p90_ms": results.percentile(milliseconds, 0.9),
            "p99_ms": results.percentile(milliseconds, 0.99),
            "worst_ms": results.percentile(milliseconds, 1.0),
            "client_cpu_us_per_op": round(cpu_s / count * 1e6, 1) if count else None,
        }


def channel_to(address: str) -> grpc.aio.Channel:
    options = TransportOptions(message_bytes_max=wire.MESSAGE_BYTES_MAX)
    return grpc.aio.insecure_channel(address, options=client_arguments(options))


async def read(call: Call) -> bytes:
    data = await call.read()
    if not isinstance(data, bytes):
        raise SystemExit("the server ended the stream")
    return data


async def stream(address: str, size: int, inflight: int, window: Window) -> None:
    payload = os.urandom(size)
    crc = crc32c(payload)
    joined = max(1, JOIN_BYTES_MAX // size)
    async with channel_to(address) as channel:
        call: Call = channel.stream_stream(f"/{wire.SERVICE}/Stream")()
        kind, _ = wire.decode_answer(await read(call))
        if kind != wire.LEADING:
            raise SystemExit(f"{address} does not lead")
        sent: dict[int, float] = {}
        number = 0
        free = inflight
        while True:
            while free:
                count = min(free, joined)
                now_s = time.perf_counter()
                for at in range(number, number + count):
                    sent[at] = now_s
                await call.write(wire.encode_commands(number, [payload] * count, [crc] * count))
                number += count
                free -= count
            kind, numbers = wire.decode_answer(await read(call))
            if kind != wire.COMMITTED:
                raise SystemExit(f"{len(numbers)} commands got answer {kind} instead of a commit")
            now_s = time.perf_counter()
            for one in numbers:
                window.answered(sent.pop(one), now_s)
            free += len(numbers)
            if window.over(now_s):
                call.cancel()
                return


async def calls(one: Callable[[], Awaitable[None]], inflight: int, window: Window) -> None:
    """`inflight` callers, each of which waits for its answer."""

    async def caller() -> None:
        while True:
            began_s = time.perf_counter()
            await one()
            now_s = time.perf_counter()
            window.answered(began_s, now_s)
            if window.over(now_s):
                return

    await asyncio.gather(*(caller() for _ in range(inflight)))


async def unary(address: str, size: int, inflight: int, window: Window) -> None:
    payload = os.urandom(size)
    request = wire.encode_commands(0, [payload], [crc32c(payload)])
    async with channel_to(address) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{wire.SERVICE}/Unary")

        async def one() -> None:
            kind, _ = wire.decode_answer(await method(request, timeout=TIMEOUT_S))
            if kind != wire.COMMITTED:
                raise SystemExit(f"a command got answer {kind} instead of a commit")

        await calls(one, inflight, window)


async def etcd_puts(address: str, size: int, inflight: int, window: Window) -> None:
    request = peer_etcd.put_request(b"key", os.urandom(size))
    async with channel_to(address) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(peer_etcd.PUT)

        async def one() -> None:
            await method(request, timeout=TIMEOUT_S)

        await calls(one, inflight, window)


MODES = {"stream": stream, "unary": unary, "etcd": etcd_puts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=sorted(MODES), required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--inflight", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-up", type=float, default=1.0)
    options = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    keep_memory()
    window = Window(options.warm_up, options.seconds)
    asyncio.run(MODES[options.mode](options.address, options.size, options.inflight, window))
    print(json.dumps(window.result(options.size)), flush=True)


if __name__ == "__main__":
    main()
