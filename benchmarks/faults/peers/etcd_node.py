"""One rank on etcd: a transaction a push, which adds to the rank's cell of each block.

The value of a key carries the step, and a transaction compares the revision that was read before: who repeats a push
without an answer reads again, and finds whether it was applied. Calls time out after 5 s, as etcdctl's do; at an
error the next member is asked.
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

import grpc

from benchmarks.commits.peer_etcd import fields_of, put_request, varint
from benchmarks.faults.peers.ledger import BLOCKS, Ledger, Unanswered

RANGE, TXN = "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"
TIMEOUT_S = 5.0
VALUE = struct.Struct("<Qq")
"""The sum, and the last step in it."""


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def number(at: int, value: int) -> bytes:
    return varint(at << 3) + varint(value)


class Rank:
    def __init__(self, rank: int, addresses: list[str]) -> None:
        self._key = [f"block-{block}/rank-{rank}".encode() for block in range(BLOCKS)]
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
        self._channels = [grpc.insecure_channel(address, options=options) for address in addresses]
        self._at = rank % len(addresses)

    def _call(self, method: str, request: bytes) -> dict[int, int | bytes]:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channels[self._at].unary_unary(method)
        try:
            return fields_of(call(request, timeout=TIMEOUT_S))
        except grpc.RpcError as error:
            self._at = (self._at + 1) % len(self._channels)
            raise Unanswered(f"gRPC {error.code().name}: {error.details()}") from None

    def get(self, block: int) -> tuple[int, int, int]:
        """(sum, last step, revision); linearizable, as etcd's reads are."""
        found = self._call(RANGE, field(1, self._key[block])).get(2)
        if not isinstance(found, bytes):
            return 0, -1, 0
        pair = fields_of(found)
        revision, value = pair[3], pair[5]
        total, step = VALUE.unpack(value if isinstance(value, bytes) else b"")
        return total, step, int(revision) if isinstance(revision, int) else 0

    def push(self, step: int) -> None:
        compares, puts = b"", b""
        for block, key in enumerate(self._key):
            total, last, revision = self.get(block)
            if last >= step:
                return  # applied before, in one transaction with the others
            # Compare: result EQUAL (0, left out), target MOD (2), key (3), mod_revision (6).
            compares += field(1, number(2, 2) + field(3, key) + number(6, revision))
            puts += field(2, field(2, put_request(key, VALUE.pack(total + 1, step))))
        if not self._call(TXN, compares + puts).get(2):
            raise Unanswered(f"step {step}: somebody else wrote")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--stop", type=Path, required=True)
    parser.add_argument("--addresses", required=True)
    options = parser.parse_args()
    rank = Rank(options.rank, options.addresses.split(","))
    ledger = Ledger(options.record, options.stop)
    ledger.write("start", step=ledger.next_step)
    ledger.insist(rank.push, Unanswered)
    ledger.final({options.rank: [rank.get(block)[0] for block in range(BLOCKS)]})


if __name__ == "__main__":
    main()
