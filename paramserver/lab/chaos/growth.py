"""Memory and descriptors of the servers while a cluster runs, a series for each start of each.

Owns sampling from /proc, on a thread of its own. Must not know: what is going on meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from paramserver.lab.chaos.figures import slope
from paramserver.lab.chaos.result import Growth
from paramserver.lab.cluster import Cluster
from paramserver.lab.usage import descriptors, resident_bytes

SAMPLE_S = 1.0
SLOPE_MINUTES_MIN = 4.0
"""A life that was shorter says nothing of growth: it begins with everything that is loaded once."""
WATCHED_MINUTES_MIN = 20.0
"""A soak that is shorter need not have such a life in it: servers are killed all the time."""


@dataclass(slots=True)
class _Series:
    node: int
    incarnation: int
    points: list[tuple[float, int, int]] = field(default_factory=list)
    """(minutes, bytes, descriptors)"""


class Sampler:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._series: dict[int, _Series] = {}
        """By process id."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="growth", daemon=True)
        self._thread.start()

    def stop(self) -> tuple[Growth, ...]:
        self._ended.set()
        self._thread.join(5.0)
        return tuple(growth(one.node, one.incarnation, one.points) for one in self._series.values() if one.points)

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            for node, server in list(self._cluster.servers.items()):
                pid = server.pid
                bytes_now = resident_bytes(pid) if pid else 0
                if not bytes_now:
                    continue
                if pid not in self._series:
                    earlier = sum(one.node == node for one in self._series.values())
                    self._series[pid] = _Series(node, earlier + 1)
                self._series[pid].points.append((time.monotonic() / 60, bytes_now, descriptors(pid)))


def unwatched(found: Sequence[Growth], minutes: float) -> list[str]:
    """What a soak that lasted long enough can't say of growth."""
    if minutes < WATCHED_MINUTES_MIN or any(one.rss_mb_per_minute is not None for one in found):
        return []
    return [f"no server lived for {SLOPE_MINUTES_MIN:g} minutes: nothing says whether memory and descriptors grow"]


def growth(node: int, incarnation: int, points: Sequence[tuple[float, int, int]]) -> Growth:
    minutes = points[-1][0] - points[0][0]
    late = points[len(points) // 2 :] if minutes >= SLOPE_MINUTES_MIN else ()
    memory = [bytes_now / 1e6 for _, bytes_now, _ in points]
    files = [count for _, _, count in points]
    return Growth(
        node=node,
        incarnation=incarnation,
        minutes=round(minutes, 2),
        rss_mb_begin=round(memory[0], 1),
        rss_mb_end=round(memory[-1], 1),
        rss_mb_max=round(max(memory), 1),
        rss_mb_per_minute=round(slope([(at, size / 1e6) for at, size, _ in late]), 2) if late else None,
        descriptors_begin=files[0],
        descriptors_end=files[-1],
        descriptors_max=max(files),
        descriptors_per_minute=round(slope([(at, count) for at, _, count in late]), 2) if late else None,
    )
