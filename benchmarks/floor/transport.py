"""Bytes from one process to another over a gRPC stream, and over a bare socket: CPU seconds of both per GB.

Messages of 1 MiB that lie ready, and are looked at where they arrive: copies before and after are other terms. The
receiver tells at the end what it used. Must not know: anything of ours, so that it is what the bare operation costs.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import numpy as np

from benchmarks.pushpull.trees import MALLOC, ROOT

BLOCK_BYTES = 1 << 20
BLOCKS = 64
"""Of the model that is sent again and again."""
METHOD = "/benchmarks.v1.Floor/Send"
OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.max_frame_size", (16 << 20) - 1),
    ("grpc.http2.lookahead_bytes", 64 << 20),
)


def measure(kind: str, gigabytes: float) -> float:
    """CPU seconds per GB of sender and receiver; `kind` is `grpc` or `tcp`."""
    receiver = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.floor.transport", kind],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**_environment(), **MALLOC},
    )
    try:
        assert receiver.stdout is not None
        port = int(receiver.stdout.readline())
        count = max(BLOCKS, round(gigabytes * 1e9 / BLOCK_BYTES))
        line = [sys.executable, "-m", "benchmarks.floor.transport", kind, str(port), str(count)]
        environment = {**_environment(), **MALLOC}
        sent = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=True)
        sender_s = float(sent.stdout)
        receiver_s = float(receiver.stdout.readline())
    finally:
        receiver.kill()
        receiver.wait()
    return (sender_s + receiver_s) / (count * BLOCK_BYTES / 1e9)


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "GRPC_VERBOSITY": "ERROR"}


def blocks(count: int) -> Iterator[bytes]:
    draw = np.random.default_rng(1)
    data = [draw.standard_normal(BLOCK_BYTES // 4, dtype=np.float32).tobytes() for _ in range(BLOCKS)]
    for number in range(count):
        yield data[number % BLOCKS]


# --- gRPC -----------------------------------------------------------------------------------------------------------


async def receive_grpc() -> None:
    done = asyncio.Event()

    async def take(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        before_s = time.process_time()
        while await context.read() is not grpc.aio.EOF:
            pass
        print(time.process_time() - before_s, flush=True)
        await context.write(b"done")
        done.set()

    server = grpc.aio.server(options=OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(take)
    service, _, method = METHOD.strip("/").partition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await done.wait()
    await server.stop(1.0)


async def send_grpc(port: int, count: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        await channel.channel_ready()
        messages = blocks(count)
        call = channel.stream_stream(METHOD)()
        first = next(messages)
        before_s = time.process_time()
        await call.write(first)
        for message in messages:
            await call.write(message)
        await call.done_writing()
        await call.read()
        print(time.process_time() - before_s, flush=True)


# --- a bare socket --------------------------------------------------------------------------------------------------


def receive_tcp() -> None:
    target = memoryview(bytearray(BLOCKS * BLOCK_BYTES))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    before_s = time.process_time()
    at = 0
    while count := connection.recv_into(target[at : at + BLOCK_BYTES]):
        at = (at + count) % len(target)
    print(time.process_time() - before_s, flush=True)


def send_tcp(port: int, count: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        messages = blocks(count)
        first = next(messages)
        before_s = time.process_time()
        connection.sendall(first)
        for message in messages:
            connection.sendall(message)
        print(time.process_time() - before_s, flush=True)


def main() -> None:
    kind, *more = sys.argv[1:]
    port, count = (int(more[0]), int(more[1])) if more else (0, 0)
    if kind == "grpc":
        asyncio.run(send_grpc(port, count) if more else receive_grpc())
    elif more:
        send_tcp(port, count)
    else:
        receive_tcp()


if __name__ == "__main__":
    main()
