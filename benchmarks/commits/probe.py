"""A client that always has one command on its way, whoever leads, and writes down when each was committed.

    python -m benchmarks.commits.probe --addresses 1=HOST:PORT,2=... --record FILE

It keeps a stream to every node; who leads announces itself there, so nobody is asked. The record is a row a commit: the
time (`time.monotonic()`, seconds) and the node that answered. Owns following the leader. Must not know: who kills it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
import time
from pathlib import Path
from typing import BinaryIO

import grpc
import grpc.aio

from benchmarks.commits import wire
from benchmarks.commits.client import Call, channel_to
from benchmarks.commits.server import members_of
from consensus.core.interface import NodeId
from consensus.storage.checksum import crc32c

ROW = struct.Struct("<dI")
PAYLOAD = bytes(100)
CRC = crc32c(PAYLOAD)
RETRY_S = 0.001
"""After a refusal by who leads all the same: it is busy, or hands over."""
RECONNECT_S = 0.05


class Probe:
    def __init__(self, record: BinaryIO) -> None:
        self._record = record
        self._calls: dict[NodeId, Call] = {}
        self._leader: NodeId = 0
        self._term = 0
        self._number = 0

    async def follow(self, node: NodeId, address: str) -> None:
        """Keep a stream to the node, for ever."""
        while True:
            async with channel_to(address) as channel:
                call: Call = channel.stream_stream(f"/{wire.SERVICE}/Stream")()
                try:
                    await call.wait_for_connection()
                    self._calls[node] = call
                    while isinstance(data := await call.read(), bytes):
                        await self._heard(node, data)
                except grpc.RpcError:
                    pass
                finally:
                    self._calls.pop(node, None)
                    if self._leader == node:
                        self._leader = 0
            await asyncio.sleep(RECONNECT_S)

    async def _heard(self, node: NodeId, data: bytes) -> None:
        kind, numbers = wire.decode_answer(data)
        if kind == wire.LEADING:
            if numbers[0] >= self._term:
                self._term, self._leader = numbers[0], node
                await self._send()
            return
        if numbers[-1] != self._number:
            return  # of a command that was given up when another leader announced itself
        if kind == wire.COMMITTED:
            self._record.write(ROW.pack(time.monotonic(), node))
        elif node == self._leader:
            await asyncio.sleep(RETRY_S)
        await self._send()

    async def _send(self) -> None:
        call = self._calls.get(self._leader)
        if call is None:
            return
        self._number += 1
        await call.write(wire.encode_commands(self._number, [PAYLOAD], [CRC]))


async def probe(addresses: dict[NodeId, str], record: Path) -> None:
    with record.open("wb", buffering=0) as file:
        one = Probe(file)
        await asyncio.gather(*(one.follow(node, address) for node, address in addresses.items()))


def read(record: Path) -> list[tuple[float, NodeId]]:
    """(seconds, node) of each commit so far, in order."""
    data = record.read_bytes() if record.exists() else b""
    return [(at_s, node) for at_s, node in ROW.iter_unpack(data[: len(data) // ROW.size * ROW.size])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--addresses", type=members_of, required=True)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    asyncio.run(probe(options.addresses, options.record))


if __name__ == "__main__":
    main()
