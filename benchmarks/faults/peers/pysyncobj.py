"""PySyncObj: three nodes with a replicated dict of blocks, a worker in each."""

from __future__ import annotations

from benchmarks.faults.peers import ledger
from benchmarks.faults.peers.system import Peer, PeerFailed
from benchmarks.pushpull.peers.environment import interpreter, version
from paramserver.lab.ports import ReservedPorts

NODE = "benchmarks.faults.peers.pysyncobj_node"


class PySyncObj(Peer):
    name = "pysyncobj"
    label = "three nodes, a worker in each; defaults; an addition that fails or has no answer in 5 s is sent again"
    durability = "memory of a majority"
    ranks = 3

    def __init__(self) -> None:
        self._python = interpreter("pysyncobj")
        super().__init__()

    @staticmethod
    def versions() -> dict[str, str]:
        return {"pysyncobj": version("pysyncobj", "pysyncobj")}

    def start(self) -> None:
        with ReservedPorts(self.ranks) as ports:
            addresses = [f"127.0.0.1:{number}" for number in ports.numbers]
        for rank, me in enumerate(addresses):
            others = ",".join(one for one in addresses if one != me)
            self.worker(rank, NODE, "--me", me, "--others", others, python=self._python)

    def _leader(self) -> int:
        for rank in self.workers:
            told = [line for line in ledger.read(self.record_file(rank)) if line["event"] == "leader"]
            if told and told[-1]["leads"]:
                return rank
        raise PeerFailed("no node says that it leads")

    def server_pid(self) -> int:
        return self.workers[self._leader()].pid

    def worker_pid(self) -> int:
        leader = self._leader()
        return next(child.pid for rank, child in self.workers.items() if rank != leader)
