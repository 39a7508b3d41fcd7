"""etcd as a store: three members, each rank adds by transactions."""

from __future__ import annotations

import shutil
import subprocess

from benchmarks.commits import peer_etcd
from benchmarks.faults.peers.system import Peer, PeerFailed
from benchmarks.pushpull.system import Unavailable

NODE = "benchmarks.faults.peers.etcd_node"


class Etcd(Peer):
    name = "etcd"
    label = "three members, defaults; a transaction a push that compares and carries the step; calls time out after 5 s"
    durability = "fsync of a majority"

    def __init__(self) -> None:
        self.versions()
        super().__init__()

    @staticmethod
    def versions() -> dict[str, str]:
        if shutil.which("etcd") is None:
            raise Unavailable(peer_etcd.INSTALL)
        said = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout
        return {"etcd": said.split("Version:")[1].split()[0]}

    def start(self) -> None:
        self._etcd = peer_etcd.Etcd(self.folder)
        self.children += self._etcd.members.values()
        self._etcd.start()
        addresses = ",".join(self._etcd.addresses.values())
        for rank in range(self.ranks):
            self.worker(rank, NODE, "--addresses", addresses)

    def server_pid(self) -> int:
        leader = self._etcd.leader()
        for name, address in self._etcd.addresses.items():
            if address == leader:
                return self._etcd.members[name].pid
        raise PeerFailed("etcd has no leader")
