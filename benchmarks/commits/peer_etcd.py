"""etcd as a peer: three members from Debian's `etcd-server` package, and the few bytes of its gRPC API that are needed.

Owns its command line and its messages, written by hand: a Put has its key in field 1 and its value in field 2, and an
answer to Status names who answers and who leads. Must not know: what is measured.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import grpc

from paramserver.lab.ports import ReservedPorts
from paramserver.lab.processes import Child

PUT = "/etcdserverpb.KV/Put"
STATUS = "/etcdserverpb.Maintenance/Status"
INSTALL = "apt-get install --no-install-recommends etcd-server"
START_TIMEOUT_S = 30.0
POLL_S = 0.05
QUOTA_BYTES = 8 << 30
"""Its default of 2 GiB would end a run with large values."""


def program() -> str | None:
    return shutil.which("etcd")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def put_request(key: bytes, value: bytes) -> bytes:
    return b"".join([b"\x0a", varint(len(key)), key, b"\x12", varint(len(value)), value])


def fields_of(data: bytes) -> dict[int, int | bytes]:
    """The last value of each field of a message that has only numbers, strings and messages."""
    found: dict[int, int | bytes] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            found[tag >> 3] = number()
        elif tag & 7 == 2:
            length = number()
            found[tag >> 3] = data[at : at + length]
            at += length
        else:
            raise ValueError(f"field {tag >> 3} has wire type {tag & 7}")
    return found


class Etcd:
    """Three members on loopback, in a folder of the caller's."""

    def __init__(self, folder: Path, members: int = 3) -> None:
        path = program()
        if path is None:
            raise FileNotFoundError(f"etcd is not installed: {INSTALL}")
        self._ports = ReservedPorts(2 * members)
        numbers = self._ports.numbers
        names = [f"m{at}" for at in range(members)]
        peers = {name: f"http://127.0.0.1:{numbers[2 * at]}" for at, name in enumerate(names)}
        self.addresses = {name: f"127.0.0.1:{numbers[2 * at + 1]}" for at, name in enumerate(names)}
        cluster = ",".join(f"{name}={url}" for name, url in peers.items())
        self.members = {
            name: Child(
                f"etcd {name}",
                [
                    *(path, "--name", name, "--data-dir", str(folder / name), "--logger", "zap"),
                    *("--log-level", "error", "--quota-backend-bytes", str(QUOTA_BYTES)),
                    *("--listen-peer-urls", peers[name], "--initial-advertise-peer-urls", peers[name]),
                    *("--listen-client-urls", f"http://{self.addresses[name]}"),
                    *("--advertise-client-urls", f"http://{self.addresses[name]}"),
                    *("--initial-cluster", cluster, "--initial-cluster-state", "new"),
                ],
                folder / f"{name}.log",
            )
            for name in names
        }

    def start(self) -> str:
        """Returns the address of the member that leads."""
        # Its listener does not set SO_REUSEADDR the way gRPC does, so the ports can't stay reserved.
        self._ports.close()
        for member in self.members.values():
            member.start()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            leader = self._leader()
            if leader is not None:
                return leader
            for member in self.members.values():
                if not member.running:
                    raise SystemExit(f"{member.name} ended with {member.code}: {member.last_words()}")
            time.sleep(POLL_S)
        raise SystemExit(f"etcd elected no leader within {START_TIMEOUT_S:g} s")

    def leader(self) -> str:
        found = self._leader()
        if found is None:
            raise SystemExit("etcd has no leader")
        return found

    def _leader(self) -> str | None:
        for address in self.addresses.values():
            try:
                with grpc.insecure_channel(address) as channel:
                    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(STATUS)
                    answer = fields_of(call(b"", timeout=1.0))
            except grpc.RpcError:
                return None
            header = answer.get(1, b"")
            leader = answer.get(4, 0)
            if isinstance(header, bytes) and leader and fields_of(header).get(2) == leader:
                return address
        return None

    def stop(self) -> None:
        for member in self.members.values():
            member.kill()
