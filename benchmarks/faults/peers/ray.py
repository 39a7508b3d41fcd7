"""Ray: an actor with the weights, a worker actor a rank, and the driver, which is the training script."""

from __future__ import annotations

import shutil
import tempfile

from benchmarks.faults.peers import ledger
from benchmarks.faults.peers.judge import Watched
from benchmarks.faults.peers.ledger import CHECKPOINT_EVERY
from benchmarks.faults.peers.system import KILL_SERVER, Peer, PeerFailed
from benchmarks.pushpull.peers.environment import interpreter, version

NODE = "benchmarks.faults.peers.ray_node"


class Ray(Peer):
    name = "ray"
    label = "one actor with the weights, not replicated; actors are not restarted (Ray's default)"
    load = "synchronous steps"
    flags: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._python = interpreter("ray")
        super().__init__()
        # Names of its sockets lie below, and have to be short.
        self._sockets = tempfile.mkdtemp(prefix="psray-", dir="/tmp")

    @staticmethod
    def versions() -> dict[str, str]:
        return {"ray": version("ray", "ray")}

    def start(self) -> None:
        self.worker(0, NODE, "--ranks", self.ranks, "--folder", self._sockets, *self.more(), python=self._python)

    def more(self) -> list[object]:
        return list(self.flags)

    def _pid(self, who: str) -> int:
        starts = [line for line in ledger.read(self.record_file(0)) if line["event"] == "start"]
        if not starts:
            raise PeerFailed("Ray's driver has not said who is who")
        return int(starts[-1]["pids"][who])

    def server_pid(self) -> int:
        return self._pid("server")

    def worker_pid(self) -> int:
        return self._pid("worker")

    def records(self) -> list[Watched]:
        """The driver's, which speaks of all ranks."""
        return [Watched("driver", ledger.read(self.record_file(0)), tuple(range(self.ranks)))]

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._sockets, ignore_errors=True)


class RayRestarts(Ray):
    name = "ray-restarts"
    label = "max_restarts=-1, max_task_retries=-1: Ray starts actors again and repeats calls"
    flags = ("--restarts",)


class RayCheckpoint(RayRestarts):
    name = "ray-restarts-checkpoint"
    label = "as ray-restarts, and the server's actor loads what it saved every 100 steps when it comes back"
    durability = "checkpoint every 100 steps"
    steps_before = CHECKPOINT_EVERY + 20
    faults = (KILL_SERVER,)

    def more(self) -> list[object]:
        return [*self.flags, "--checkpoint", self.folder / "checkpoint.npz"]
