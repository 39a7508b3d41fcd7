"""What a run of `benchmarks.commit` says: ratios, targets and whether they are met, tables for the documentation.

    python -m benchmarks.commits.report benchmarks/results/commit.json [--write docs/benchmarks.md]

Owns the targets, and how a result is shown. Invariant: every number in the documentation's tables comes from a result
file, by this command. Must not know: how anything is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.common import targets as targets_of
from benchmarks.common.targets import Row, Target, number

KIB, MIB = 1 << 10, 1 << 20
Result: TypeAlias = dict[str, Any]
BEGIN, END = "<!-- benchmarks.commit: begin -->", "<!-- benchmarks.commit: end -->"
NO_RESULT = "No result of a quiet run is stored yet; the command above makes one."


TARGETS = (
    Target("etcd_100b_1_p50", "100 B, 1 in flight: p50, times etcd's", 1.5, 0.9, less=True),
    Target("etcd_100b_32_ops", "100 B, 32 in flight: operations/s, times etcd's", 0.7, 1.5),
    Target("100b_1024_ops_per_s", "100 B, 1,024 in flight: operations/s", 15_000, 30_000),
    Target("etcd_1mib_mb_s", "1 MiB: MB/s, times etcd's", 10, 15),
    Target("pysyncobj_64kib_mb_s", "64 KiB: MB/s, times PySyncObj's (nothing synced there)", 1, None),
    Target("pysyncobj_1mib_mb_s", "1 MiB: MB/s, times PySyncObj's (nothing synced there)", 1, None),
    Target("kills_median_ms", "leader killed with -9: ms to the first commit after, median", 60, 30, less=True),
    Target("kills_worst_ms", "the same, worst", 400, None, less=True),
    Target("transfers_median_ms", "planned transfer: longest gap in commits in ms, median", 15, 5, less=True),
    Target("idle_percent", "100 idle groups on three nodes: % of a core, busiest node", 5, 2, less=True),
)
RATIOS = (
    (100, 1, "p50_ms", "100b_1_p50"),
    (100, 32, "ops_per_s", "100b_32_ops"),
    (100, 1024, "ops_per_s", "100b_1024_ops"),
    (4 * KIB, 32, "ops_per_s", "4kib_ops"),
    (64 * KIB, 32, "mb_per_s", "64kib_mb_s"),
    (MIB, 16, "mb_per_s", "1mib_mb_s"),
)
"""(bytes, in flight, what is compared, name)."""


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Ours by stream against theirs. Of times (`p50`) less is better, of all else more."""
    found: dict[str, float] = {}
    for peer in ("etcd", "pysyncobj"):
        for size, inflight, key, name in RATIOS:
            mine, other = (value_of(rows, system, size, inflight, key) for system in ("paramserver", peer))
            if mine is not None and other:
                found[f"{peer}_{name}"] = round(mine / other, 3)
    return found


def value_of(rows: Sequence[Row], system: str, size: int, inflight: int, key: str) -> float | None:
    """Ours by stream."""
    for one in rows:
        if (one["system"], one["bytes"], one["in_flight"]) == (system, size, inflight) and (
            system != "paramserver" or one["mode"] == "stream"
        ):
            value: float | None = one[key]
            return value
    return None


def targets(result: Result) -> list[Row]:
    """Each target, what was measured, and whether that is enough."""
    values: dict[str, float | None] = dict(ratios(result["rows"]))
    values["100b_1024_ops_per_s"] = value_of(result["rows"], "paramserver", 100, 1024, "ops_per_s")
    for name in ("kills", "transfers"):
        for key in ("median_ms", "worst_ms"):
            values[f"{name}_{key}"] = result.get(name, {}).get(key)
    values["idle_percent"] = result.get("idle", {}).get("worst_percent")
    return [_judged(target, values.get(target.name), result["rows"]) for target in TARGETS]


def _judged(target: Target, value: float | None, rows: Sequence[Row]) -> Row:
    for size, inflight, key, name in RATIOS:
        if value is None and target.name == f"pysyncobj_{name}":
            theirs, ours = (value_of(rows, system, size, inflight, key) for system in ("pysyncobj", "paramserver"))
            if theirs == 0 and ours:
                note = "it answered nothing in the time, so there is no ratio"
                return {**target.judged(None, note), "met": True}
    return target.judged(value)


# --- tables ---------------------------------------------------------------------------------------------------------


def table(result: Result) -> str:
    """Targets, then every row, then what was run on."""
    lines = [*targets_of.table(result["targets"]), "", *_rows(result["rows"]), ""]
    for name, what in (("kills", "Kills of the leader"), ("transfers", "Planned transfers")):
        if name in result:
            found = result[name]
            line = f"{what}: {found['count']}, median {found['median_ms']} ms, 90th percentile {found['p90_ms']} ms, "
            lines.append(f"{line}worst {found['worst_ms']} ms.")
    if "idle" in result:
        found = result["idle"]
        lines.append(f"{found['groups']} idle groups: {found['worst_percent']} % of a core at the busiest node.")
    lines += [f"Missing: {peer} (`{install}`)." for peer, install in result["missing"].items()]
    machine, peers = result["machine"], result["peers"]
    named = [*result["versions"].items(), *peers.items()]
    lines.append("")
    lines.append(
        f"`{result['command']}`, {result['wall_s']} s in all; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, Linux {machine['kernel']}; {', '.join(f'{name} {one}' for name, one in named)}."
    )
    return "\n".join(lines)


def _rows(rows: Iterable[Row]) -> list[str]:
    keys = ("ops_per_s", "mb_per_s", "p50_ms", "p90_ms", "p99_ms")
    lines = [
        "| system | clients | durability | bytes | in flight | ops/s | MB/s | p50 ms | p90 | p99 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        cells = [one["system"], one["mode"], one["durability"], number(one["bytes"]), number(one["in_flight"])]
        lines.append("| " + " | ".join([*cells, *(number(one.get(key)) for key in keys)]) + " |")
    return lines


def spliced(text: str, block: str) -> str:
    """The documentation's text with what stands between the two marks replaced."""
    return targets_of.spliced(text, block, BEGIN, END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between this file's marks")
    options = parser.parse_args()
    block = table(json.loads(options.result.read_text()))
    if options.write is None:
        print(block)
    else:
        options.write.write_text(spliced(options.write.read_text(), block))


if __name__ == "__main__":
    main()
