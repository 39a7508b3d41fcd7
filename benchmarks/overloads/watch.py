"""What servers do meanwhile: memory, descriptors, leaders, lag; sampled, and judged.

Must not know: what the clients do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paramserver.lab import status
from paramserver.lab.cluster import Cluster
from paramserver.lab.usage import cpu_s, descriptors, resident_bytes

ASK_TIMEOUT_S = 5.0
GAUGES = ("loop_lag_ms_p50_1m", "loop_lag_ms_p99_1m", "loop_lag_ms_max_1m", "sums_bytes_most", "replies_bytes_most")
GAUGES += ("pulls_bytes_most", "memory_bytes_bound", "push_streams", "pulls", "calls", "connections", "retry_after_ms")


@dataclass(frozen=True, slots=True)
class Sample:
    """Of all servers at one time. `gauges` and `leading` only of those that answered."""

    t: float
    resident: Mapping[int, int]
    descriptors: Mapping[int, int]
    gauges: Mapping[int, Mapping[str, float]]
    leading: Mapping[int, tuple[int, int]]
    """Group -> (term, node)."""


@dataclass(slots=True)
class Watch:
    cluster: Cluster
    samples: list[Sample] = field(default_factory=list)

    def sample(self) -> Sample:
        answers = self.cluster.statuses(timeout_s=ASK_TIMEOUT_S)
        reached = status.reached(answers)
        pids = {node: server.pid for node, server in self.cluster.servers.items()}
        taken = Sample(
            time.monotonic(),
            {node: resident_bytes(pid) for node, pid in pids.items()},
            {node: descriptors(pid) for node, pid in pids.items()},
            {node.node: {name: node.gauges[name] for name in GAUGES} for node in reached},
            {
                group.group: (group.term, node.node)
                for node in reached
                for group in node.groups
                if group.leads
            },
        )  # fmt: skip
        self.samples.append(taken)
        return taken

    def cpu_s(self) -> float:
        return cpu_s(server.pid for server in self.cluster.servers.values())

    def report(self, begun_s: float) -> dict[str, Any]:
        """Of the samples since then."""
        samples = [one for one in self.samples if one.t >= begun_s]
        late = samples[len(samples) // 2 :]
        nodes = sorted(self.cluster.servers)
        return {
            "memory": {
                str(node): {
                    "mb_begin": _mb(samples[0].resident[node]),
                    "mb_end": _mb(samples[-1].resident[node]),
                    "mb_max": _mb(max(one.resident[node] for one in samples)),
                    "mb_bound": _mb(min(_of(samples, node, "memory_bytes_bound"), default=0)),
                    "mb_per_minute": round(slope([(one.t / 60, one.resident[node] / 1e6) for one in late]), 2),
                }
                for node in nodes
            },
            "descriptors": {
                str(node): {
                    "begin": samples[0].descriptors[node],
                    "end": samples[-1].descriptors[node],
                    "max": max(one.descriptors[node] for one in samples),
                    "per_minute": round(slope([(one.t / 60, one.descriptors[node]) for one in late]), 2),
                }
                for node in nodes
            },
            "loop_lag_ms": {
                str(node): {
                    which: max(_of(samples, node, f"loop_lag_ms_{which}_1m"), default=None)
                    for which in ("p50", "p99", "max")
                }
                for node in nodes
            },
            "most": {
                str(node): {
                    name: max(_of(samples, node, name), default=None)
                    for name in GAUGES
                    if not name.startswith(("loop_lag", "memory"))
                }
                for node in nodes
            },
            "leader_changes": changes([one.leading for one in samples]),
            "answers": sum(len(one.gauges) for one in samples),
            "questions": len(samples) * len(nodes),
        }


def changes(leading: Sequence[Mapping[int, tuple[int, int]]]) -> int:
    """How often a group was seen with another term or leader than before."""
    known: dict[int, tuple[int, int]] = {}
    count = 0
    for seen in leading:
        for group, who in seen.items():
            if known.get(group, who) != who:
                count += 1
            known[group] = who
    return count


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through the points, by least squares; 0 of fewer than two."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def _of(samples: Sequence[Sample], node: int, name: str) -> list[float]:
    return [one.gauges[node][name] for one in samples if node in one.gauges]


def _mb(count: float) -> float:
    return round(count / 1e6, 1)
