"""What servers hold at most: a model with Adam is trained until every server has written snapshots meanwhile.

The peak is the kernel's own (VmHWM), of every server, with the memory settings that servers make by themselves. What is
allowed is 1.25 x (two versions of the weights + the optimizer's slots) + the stated windows + 150 MB.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.pushpull.case import Case
from benchmarks.pushpull.comparing import Found
from benchmarks.pushpull.ours import OurOptions, Ours
from benchmarks.pushpull.trees import available_bytes, peak_bytes
from benchmarks.pushpull.turns import Effort
from paramserver.config import NodeConfig
from paramserver.wire.spec import usual_block_bytes

MODEL_MB = 256
WORKERS = 1
SNAPSHOTS = 2
"""Of each server, before the run may end."""
TIMEOUT_S = 300.0
STEP_TIMEOUT_S = 120.0
SHARE, EXTRA_BYTES = 1.25, 150_000_000
LEFT_BYTES_MIN = 1_500_000_000
"""Of the machine: with less the run ends before the kernel ends a server."""


def run(options: argparse.Namespace, _effort: Effort) -> Found:
    model_mb = 4 if options.quick else (options.model_mb or [MODEL_MB])[0]
    case = Case(model_mb=model_mb, workers=WORKERS)
    found = Found()
    with Ours(case, OurOptions(replicas=options.replicas, optimizer="adam"), malloc=False) as system:
        assert isinstance(system, Ours)
        seen, steps, seconds = train(system, 20.0 if options.quick else TIMEOUT_S)
        peaks = [peak_bytes(pid) for pid in system.server_pids()]
        windows = stated_windows(case, options.replicas)
        state = 4 * case.model_bytes  # two versions, and Adam's two slots
        allowed = SHARE * state + sum(windows.values()) + EXTRA_BYTES
        row: dict[str, Any] = {
            "system": system.name,
            "model_mb": case.model_mb,
            "workers": case.workers,
            "replicas": options.replicas,
            "optimizer": "adam",
            "durability": system.durability,
            "steps": steps,
            "seconds": round(seconds, 1),
            "snapshots_by_server": [len(files) for files in seen],
            "server_peak_mb": [round(peak / 1e6) for peak in peaks],
            "state_mb": round(state / 1e6),
            "windows_mb": {name: round(size / 1e6, 1) for name, size in windows.items()},
            "allowed_mb": round(allowed / 1e6),
        }
        found.add_row(row)
        found.ratios[f"memory_adam_{case.model_mb}mb_peak_vs_allowed"] = round(max(peaks) / allowed, 3)
        if min(row["snapshots_by_server"]) == 0:
            found.missing["memory"] = "a server wrote no snapshot before the end, so its peak may be too low"
        if available_bytes() < LEFT_BYTES_MIN:
            found.missing["more memory"] = "the machine's was used up, and the run ended early: peaks may be too low"
    return found


def train(system: Ours, timeout_s: float) -> tuple[list[set[str]], int, float]:
    """Until every server has SNAPSHOTS newer snapshots; returns the names of those, the steps, the seconds."""
    folders = [system.cluster.data_folder(node) for node in system.cluster.servers]
    system.step(1, STEP_TIMEOUT_S)
    before = [snapshots(folder) for folder in folders]
    seen: list[set[str]] = [set() for _ in folders]
    began_s = time.monotonic()
    while (
        time.monotonic() < began_s + timeout_s
        and min(map(len, seen)) < SNAPSHOTS
        and available_bytes() >= LEFT_BYTES_MIN
    ):
        system.step(1, STEP_TIMEOUT_S)
        for files, folder, old in zip(seen, folders, before, strict=True):
            files |= snapshots(folder) - old
    return seen, system.taken(), time.monotonic() - began_s


def snapshots(folder: Path) -> set[str]:
    """Whole ones of data groups; that of group 0 is small and says nothing."""
    return {str(path) for path in (folder / "snapshots").glob("group-*/*.snapshot") if path.parent.name != "group-0"}


def stated_windows(case: Case, replicas: int) -> dict[str, int]:
    """What the options of a server bound that may lie in its memory beside the model under this load, in bytes. Every
    server has a replica of every group, and leads its share of them."""
    options = NodeConfig(node=1)
    groups = replicas
    led_bytes = case.model_bytes // groups
    return {
        "open sums": min(options.window_bytes, options.window_blocks * usual_block_bytes(case.elements) * case.workers),
        "uncommitted": options.uncommitted_bytes_max * groups,
        "replies": min(options.replies_bytes_max, led_bytes * case.workers),
        "streams": options.stream_window_bytes * (case.workers + 2 * (replicas - 1)),
    }
