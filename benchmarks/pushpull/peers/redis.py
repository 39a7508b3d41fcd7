"""Redis as a store: a primary and a replica, each rank sets its blocks, waits for the replica, and gets them back."""

from __future__ import annotations

import shutil
import socket
import subprocess

from benchmarks.pushpull.case import Case
from benchmarks.pushpull.peers.environment import interpreter, version
from benchmarks.pushpull.system import System, Unavailable
from paramserver.lab.ports import ReservedPorts

INSTALL = "apt-get install --no-install-recommends redis-server"
START_TIMEOUT_S = 30.0


class Redis(System):
    name = "redis"
    durability = "none; WAIT 1 replica"
    note = "bytes only: no sum, no optimizer; values set, acknowledged by a replica in memory, and read back"
    replicas = 2

    def __init__(self, case: Case, *, malloc: bool = True) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise Unavailable(INSTALL)
        self._program = program
        self._python = interpreter("redis")
        super().__init__(case, malloc=malloc)

    @staticmethod
    def versions() -> dict[str, str]:
        said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
        return {"redis-server": said.split("v=")[1].split()[0], "redis-py": version("redis", "redis")}

    def start(self) -> None:
        with ReservedPorts(2) as ports:
            primary, replica = ports.numbers
        self._server("primary", primary)
        self.wait(lambda: "PONG" in ask(primary, "PING"), "answer of the primary", START_TIMEOUT_S)
        self._server("replica", replica, "--replicaof", f"127.0.0.1 {primary}")
        linked = "master_link_status:up"
        self.wait(lambda: linked in ask(replica, "INFO replication"), "link of the replica", START_TIMEOUT_S)
        for rank in range(self.case.workers):
            flags: list[object] = ["--port", primary, "--rank", rank, "--elements", self.case.elements]
            flags += ["--gate", self.gate_file, "--record", self.record_file(rank)]
            self.module(f"client {rank}", "benchmarks.pushpull.peers.redis_node", *flags, python=self._python)

    def _server(self, name: str, port: int, *more: str) -> None:
        line = [self._program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        line += ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", "--repl-backlog-size", "64mb"]
        line += ["--repl-timeout", "3600"]  # both are stopped while others have their turn
        line += ["--client-output-buffer-limit", "replica 0 0 0", "--dbfilename", f"{name}.rdb", *more]
        self.child(name, line)

    def server_pids(self) -> list[int]:
        return [child.pid for child in self.children[:2]]


def ask(port: int, command: str) -> str:
    """One inline command; empty when nobody answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(65536).decode()
    except OSError:
        return ""
