"""Redis as a store: a primary, two replicas and three Sentinels, each rank adds by HINCRBY and waits for a replica."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial

from benchmarks.faults.peers.system import Peer, PeerFailed
from benchmarks.pushpull.peers.environment import interpreter, version
from benchmarks.pushpull.peers.redis import INSTALL, ask
from benchmarks.pushpull.system import Unavailable
from paramserver.lab.ports import ReservedPorts
from paramserver.lab.processes import Child

NODE = "benchmarks.faults.peers.redis_node"
PRIMARY = "drill"
"""As Sentinel calls it."""
SENTINELS = 3
DOWN_AFTER_MS = 5000


class Redis(Peer):
    name = "redis"
    label = "a primary, two replicas, three Sentinels that wait 5 s; WAIT 1 a push; additions are sent again on error"
    durability = "appendonly everysec; one replica's memory"

    def __init__(self) -> None:
        self.versions()
        self._python = interpreter("redis")
        super().__init__()
        self._servers: dict[int, Child] = {}

    @staticmethod
    def program() -> str:
        found = shutil.which("redis-server")
        if found is None:
            raise Unavailable(INSTALL)
        return found

    @staticmethod
    def versions() -> dict[str, str]:
        Redis.program()
        said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
        return {"redis-server": said.split("v=")[1].split()[0], "redis-py": version("redis", "redis")}

    def start(self) -> None:
        with ReservedPorts(3 + SENTINELS) as ports:
            primary, *replicas = ports.numbers[:3]
            self._sentinels = ports.numbers[3:]
        self._server(primary)
        self.wait(partial(says, primary, "PING", "PONG"), "answer of the primary")
        for port in replicas:
            self._server(port, "--replicaof", f"127.0.0.1 {primary}")
        for port in replicas:
            self.wait(partial(says, port, "INFO replication", "master_link_status:up"), "link of a replica")
        for port in self._sentinels:
            self._sentinel(port, primary)
        known = (f"num-other-sentinels\r\n$1\r\n{SENTINELS - 1}\r\n", f"num-slaves\r\n$1\r\n{len(replicas)}\r\n")
        for port in self._sentinels:
            self.wait(partial(says, port, f"SENTINEL MASTER {PRIMARY}", *known), "Sentinel that knows")
        for rank in range(self.ranks):
            places = ",".join(map(str, self._sentinels))
            self.worker(rank, NODE, "--sentinels", places, "--primary", PRIMARY, python=self._python)

    def _server(self, port: int, *more: str) -> None:
        folder = self.folder / f"redis-{port}"
        folder.mkdir()
        line = [self.program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        line += ["--appendonly", "yes", "--appendfsync", "everysec", "--repl-diskless-sync-delay", "0", *more]
        self._servers[port] = self.child(f"redis {port}", line)

    def _sentinel(self, port: int, primary: int) -> None:
        path = self.folder / f"sentinel-{port}.conf"
        path.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor {PRIMARY} 127.0.0.1 {primary} {SENTINELS // 2 + 1}\n"
            f"sentinel down-after-milliseconds {PRIMARY} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {PRIMARY} 60000\nsentinel parallel-syncs {PRIMARY} 1\n"
        )
        self.child(f"sentinel {port}", [self.program(), str(path), "--sentinel"])

    def server_pid(self) -> int:
        said = ask(self._sentinels[0], f"SENTINEL GET-MASTER-ADDR-BY-NAME {PRIMARY}").split("\r\n")
        for port, child in self._servers.items():
            if str(port) in said:
                return child.pid
        raise PeerFailed(f"Sentinel knows no primary: {said}")


def says(port: int, asked: str, *wanted: str) -> bool:
    answer = ask(port, asked)
    return all(one in answer for one in wanted)
