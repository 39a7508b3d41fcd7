"""One node: a counter behind the real log, threads, transport and runtime, put together as `paramserver server` does.

    python -m benchmarks.commits.server --node 1 --members 1=127.0.0.1:7001,2=... --data DIR [--groups 100]

Owns the composition, and how clients' commands reach the runtime. Clients send commands to group 1. It says `ready`
when it serves. Must not know: what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import signal
import struct
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import grpc
import grpc.aio

from benchmarks.commits import wire
from consensus.core.interface import Configuration, Entry, NodeId, ReplicaId
from consensus.runtime import GroupHandle, NodeRuntime
from consensus.runtime.interface import Applied, Committed, Outcome, Refused, TransferOutcome, Transferred
from consensus.runtime.threads import MonotonicClock, ThreadLanes, ThreadLogWriter, Ticker, end_process
from consensus.storage.filesystem import DirectoryLock, OsFileSystem
from consensus.storage.identity import load_or_create
from consensus.storage.snapshots import SnapshotFiles
from consensus.storage.wal import Wal
from consensus.transport.grpc.arguments import server_options
from consensus.transport.nodes import NodeTransport
from consensus.transport.options import TransportOptions
from paramserver.config import NodeConfig
from paramserver.wire.allocator import collect_seldom, keep_memory

GROUP = 1
_STATE = struct.Struct("<QQ")


class Counter:
    """`StateMachine`: how many commands were applied, and how many bytes they had."""

    def __init__(self) -> None:
        self.count = 0
        self.total_bytes = 0

    def apply(self, entry: Entry) -> int:
        self.count += 1
        self.total_bytes += len(entry.payload)
        return self.count

    def snapshot(self) -> Iterator[bytes]:
        yield _STATE.pack(self.count, self.total_bytes)

    def restore(self, chunks: Iterator[memoryview]) -> None:
        self.count, self.total_bytes = _STATE.unpack(b"".join(chunks))

    def size_bytes(self) -> int:
        return _STATE.size


class Listener:
    """`GroupListener` that only tells when this node leads."""

    def __init__(self, leading: Callable[[int], None]) -> None:
        self._leading = leading

    def leading(self, term: int) -> None:
        self._leading(term)

    def deposed(self, term: int) -> None: ...

    def leader_changed(self, leader: ReplicaId, term: int) -> None: ...

    def applied(self, batch: Sequence[Applied]) -> None: ...

    def restored(self, index: int) -> None: ...

    def handing_over(self, to: ReplicaId) -> None: ...

    def drained(self) -> bool:
        return True

    def note(self) -> bytes:
        return b""

    def noted(self, replica: ReplicaId, note: bytes) -> None: ...


class Answers:
    """What waits to be sent to one client; all that comes together leaves together."""

    def __init__(self) -> None:
        self._waiting: dict[int, array[int]] = defaultdict(lambda: array("Q"))
        self.wake = asyncio.Event()

    def put(self, kind: int, number: int) -> None:
        self._waiting[kind].append(number)
        self.wake.set()

    def take(self) -> list[bytes]:
        waiting = list(self._waiting.items())
        self._waiting.clear()
        self.wake.clear()
        return [wire.encode_answer(kind, numbers) for kind, numbers in waiting]


class CommitService:
    """Commands from many clients, to one group."""

    def __init__(self, runtime: NodeRuntime) -> None:
        self._runtime = runtime
        self._clients: set[Answers] = set()
        self.handle: GroupHandle | None = None
        self.counter = Counter()
        self.term = 0

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            wire.SERVICE,
            {
                "Stream": grpc.stream_stream_rpc_method_handler(self._stream),
                "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
                "Status": grpc.unary_unary_rpc_method_handler(self._status),
                "Transfer": grpc.unary_unary_rpc_method_handler(self._transfer),
            },
        )

    def leading(self, term: int) -> None:
        self.term = term
        for client in self._clients:
            client.put(wire.LEADING, term)

    def _group(self) -> GroupHandle:
        if self.handle is None:
            raise RuntimeError("the group is not there yet")
        return self.handle

    async def _stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        answers = Answers()
        self._clients.add(answers)
        await context.send_initial_metadata(())
        writing = asyncio.create_task(self._write(answers, context))
        try:
            if self._group().ready_to_serve:
                answers.put(wire.LEADING, self.term)
            async for data in requests:
                self._propose(data, answers.put)
        finally:
            self._clients.discard(answers)
            writing.cancel()

    async def _write(self, answers: Answers, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while True:
            await answers.wake.wait()
            for message in answers.take():
                await context.write(message)

    def _propose(self, data: bytes, put: Callable[[int, int], None]) -> None:
        handle = self._group()
        with self._runtime.input():
            for number, payload, crc in wire.decode_commands(data):
                handle.propose(payload, crc, partial(_answer, put, number))

    async def _unary(self, data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """One command a call."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._propose(data, lambda kind, _: done.set_result(kind) if not done.done() else None)
        return wire.encode_answer(await done, array("Q", [0]))

    async def _status(self, data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        handle = self._group()
        core = handle.status().core
        _, leader, term = handle.leader()
        return wire.to_json(
            {
                "leader": leader,
                "term": term,
                "serves": handle.ready_to_serve,
                "applied": core.applied_index if core is not None else 0,
                "count": self.counter.count,
                "bytes": self.counter.total_bytes,
                "leads": sum(one.ready_to_serve for one in self._runtime.groups.values()),
                "awake": sum(one.asleep is None for one in self._runtime.groups.values()),
            }
        )

    async def _transfer(self, data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """Hand leadership to the replica that the request names."""
        done: asyncio.Future[TransferOutcome] = asyncio.get_running_loop().create_future()
        self._group().transfer(wire.from_json(data)["to"], done.set_result)
        outcome = await done
        return wire.to_json({"transferred": isinstance(outcome, Transferred), "outcome": repr(outcome)})


def _answer(put: Callable[[int, int], None], number: int, outcome: Outcome) -> None:
    kind = wire.REFUSED if isinstance(outcome, Refused) else wire.UNKNOWN
    put(wire.COMMITTED if isinstance(outcome, Committed) else kind, number)


async def serve(config: NodeConfig, groups: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    transport_options = TransportOptions(message_bytes_max=wire.MESSAGE_BYTES_MAX)
    server = grpc.aio.server(options=server_options(transport_options))
    server.add_insecure_port(config.bind)
    folder, filesystem = config.data_dir, OsFileSystem()
    lock = DirectoryLock(folder)
    text = ",".join(f"{node}={address}" for node, address in sorted(config.members.items()))
    identity = load_or_create(filesystem, folder, hashlib.sha256(text.encode()).digest()[:16], config.node)
    wal, recovery = Wal.open(filesystem, f"{folder}/wal", identity.identity(), config.wal_options())
    post = loop.call_soon_threadsafe
    writer = ThreadLogWriter(wal, post, flush_bytes_max=config.wal_options().flush_bytes_max)
    lanes = ThreadLanes(post)
    transport = NodeTransport(
        folder=identity, incarnation=recovery.incarnation, addresses=config.members, options=transport_options
    )
    options = config.runtime_options()
    runtime = NodeRuntime(
        node=config.node,
        recovery=recovery,
        writer=writer,
        snapshots=SnapshotFiles(filesystem, f"{folder}/snapshots"),
        lanes=lanes,
        transport=transport,
        clock=MonotonicClock(),
        random=lambda _: random.Random(os.urandom(16)),
        options=options,
        fatal=end_process,
    )
    ticker = Ticker(runtime, tick_ms=options.tick_ms)
    service = CommitService(runtime)
    nodes = sorted(config.members)
    for group in range(GROUP, GROUP + groups):
        _add_group(runtime, service, group, config.node, nodes)
    service.handle = runtime.groups[GROUP]
    transport.register(server)
    server.add_generic_rpc_handlers((service.handlers(),))
    try:
        await server.start()
        transport.start()
        await transport.introduced()
        runtime.start()
        ticker.start()
        print(f"ready node={config.node} ", flush=True)
        await stop.wait()
    finally:
        runtime.stop()
        ticker.stop()
        await server.stop(0.1)
        await transport.close()
        await loop.run_in_executor(None, writer.close)
        await loop.run_in_executor(None, lanes.close)
        lock.release()


def _add_group(runtime: NodeRuntime, service: CommitService, group: int, node: NodeId, nodes: list[NodeId]) -> None:
    """Each node is preferred by its share of the groups; group 1 by the first."""
    turn = (group - GROUP) % len(nodes)
    first = group == GROUP
    runtime.add_group(
        group=group,
        replica=node,
        configuration=Configuration((*nodes[turn:], *nodes[:turn])),
        nodes={one: one for one in nodes},
        machine=service.counter if first else Counter(),
        listener=Listener(service.leading if first else lambda _: None),
    )


def members_of(text: str) -> dict[NodeId, str]:
    pairs = (one.split("=", 1) for one in text.split(","))
    return {int(node): address for node, address in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", type=int, required=True)
    parser.add_argument("--members", type=members_of, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--groups", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    keep_memory()
    collect_seldom()
    config = NodeConfig(node=options.node, members=options.members, data_dir=options.data)
    problems = config.validate()
    if problems:
        raise SystemExit("; ".join(problems))
    asyncio.run(serve(config, options.groups))


if __name__ == "__main__":
    main()
