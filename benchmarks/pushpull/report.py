"""What the results of `benchmarks.push_pull` and `benchmarks.terms` say: targets and whether they are met, tables.

    python -m benchmarks.pushpull.report docs/benchmarks [--write docs/benchmarks.md]

Owns the targets, and how results are shown. Invariant: every number in the documentation's tables comes from a result
file, by this command. Must not know: how anything is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.common import targets as common
from benchmarks.common.targets import Row, Target, number

Result: TypeAlias = dict[str, Any]
BEGIN, END = "<!-- benchmarks.push_pull: begin -->", "<!-- benchmarks.push_pull: end -->"
NO_RESULT = "No result of a quiet run is stored yet; `make bench-push-pull` makes one."
SUITES = ("figures", "tensors", "pulls", "memory", "sweep")
TERMS = "terms"
PLOTS = ("systems", "floor", "workers", "sizes", "groups", "delay")
STEP_TARGET = "step_1mb_w1_p50_ms"


def _torch(workers: int, at_least: float, model_mb: int = 64, codec: str = "fp32") -> tuple[Target, Target]:
    plural = "s" if workers > 1 else ""
    what = f"{model_mb} MB {codec}, {workers} worker{plural}: MB/s, times torch RPC's"
    name = f"{codec}_{model_mb}mb_w{workers}_vs_torch-rpc"
    return Target(name, what, at_least, None), Target(f"{name}-plain", "the same, its malloc as it is", at_least, None)


TARGETS = (
    *_torch(1, 0.4),
    *_torch(2, 0.65),
    *_torch(4, 0.9),
    *_torch(2, 0.65, codec="bf16"),
    *_torch(2, 0.65, model_mb=256),
    Target("cpu_64mb_w1_vs_floor", "64 MB, 1 worker: CPU seconds per GB, times the floor", None, 1.3, less=True),
    Target("cpu_64mb_w2_vs_floor", "the same, 2 workers", None, 1.3, less=True),
    Target("cpu_64mb_w4_vs_floor", "the same, 4 workers", None, 1.3, less=True),
    Target(STEP_TARGET, "1 MB fp32, 1 worker: ms a step, p50", 5, 2.5, less=True),
    Target("fp32_64mb_w1_replicas3_vs_1", "three replicas, times one, 1 worker", 0.35, 0.42),
    Target("fp32_64mb_w4_replicas3_vs_1", "three replicas, times one, 4 workers", 0.55, 0.68),
    Target("fp32_64mb_w1_vs_redis", "64 MB, 1 worker: MB/s, times Redis with WAIT 1", 2, 3),
    Target("fp32_64mb_w2_vs_redis", "the same, 2 workers", 2, 3),
    Target("fp32_64mb_w4_vs_redis", "the same, 4 workers", 2, 3),
    Target("time_tensors10000_vs_1_buffer", "10,000 small tensors: time, times that of one", 1.2, 1.05, less=True),
    Target("time_tensors10000_vs_1_arrays", "the same, from arrays of the caller's own", 1.2, 1.05, less=True),
    Target(
        "memory_adam_256mb_peak_vs_allowed",
        "256 MB with Adam: a server's peak memory, times what is allowed",
        1,
        None,
        less=True,
    ),
)


def load(folder: Path) -> list[Result]:
    """The results that are there, in the order of their tables."""
    paths = [folder / f"push_pull-{suite}.json" for suite in SUITES] + [folder / f"{TERMS}.json"]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def targets(results: Iterable[Result]) -> list[Row]:
    """Each target, what was measured, and whether that is enough."""
    values: dict[str, float] = {}
    for result in results:
        values |= result["ratios"]
        for row in result["rows"]:
            first = (row.get("system"), row.get("model_mb"), row.get("workers"), row.get("codec"), row.get("replicas"))
            if result.get("suite") == "figures" and first == ("paramserver", 1, 1, "fp32", 3):
                values[STEP_TARGET] = row["step_ms"]["p50"]
    return [target.judged(values.get(target.name)) for target in TARGETS]


def page(results: Sequence[Result], plots: Path | None = None) -> str:
    """Everything between the two marks; `plots`: the folder in which they lie, if it is to be shown."""
    if not results:
        return NO_RESULT
    lines = common.table(targets(results))
    for result in results:
        name = result.get("suite", result["benchmark"])
        lines += ["", f"### {TITLES[name]}", "", *TABLES[name](result)]
        lines += ["", *(f"Not measured: {what}: {_line(why)}." for what, why in result.get("missing", {}).items())]
        lines += ["", provenance(result)]
    shown = [name for name in PLOTS if plots is not None and (plots / f"{name}.png").exists()]
    lines += ["", *(f"![{name}](benchmarks/{name}.png)" for name in shown)] if shown else []
    return "\n".join(squeezed(lines))


def squeezed(lines: Iterable[str]) -> Iterable[str]:
    """No two empty lines in a row."""
    before = ""
    for line in lines:
        if line or before:
            yield line
        before = line


def _line(text: str) -> str:
    first, _, rest = text.strip().partition("\n")
    return (first + (" ..." if rest else "")).rstrip(".")


def provenance(result: Result) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"`{result['command']}`, {result['wall_s']} s in all; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, Linux {machine['kernel']}; {versions}."
    )


# --- tables ---------------------------------------------------------------------------------------------------------


def grid(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return lines


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, int | float) or value is None else str(value)


def speeds(row: Row) -> list[Any]:
    return [row["mb_per_s"], row["step_ms"]["p50"], row["step_ms"]["p99"], row["cpu_s_per_gb"]]


HEADS = {"model_mb": "model MB", "delay_ms": "delay ms"}
SPEEDS = ("MB/s", "step ms p50", "p99", "CPU s/GB")


def figures(result: Result) -> list[str]:
    head = ("system", "replicas", "durability", "codec", "model MB", "workers", *SPEEDS)
    keys = ("system", "replicas", "durability", "codec", "model_mb", "workers")
    lines = grid(head, ([row[key] for key in keys] + speeds(row) for row in result["rows"]))
    notes = {row["system"]: row["note"] for row in result["rows"] if "note" in row}
    return [*lines, "", *(f"- {system}: {note}" for system, note in notes.items())]


def sweep(result: Result) -> list[str]:
    lines = []
    for name, key in (("workers", "workers"), ("sizes", "model_mb"), ("groups", "groups"), ("delay", "delay_ms")):
        found = [row for row in result["rows"] if row["sweep"] == name]
        if found:
            keys = list(dict.fromkeys(("system", key, "model_mb", "workers")))
            head = [*(HEADS.get(one, one) for one in keys), *SPEEDS]
            lines += [f"Over {name}:", "", *grid(head, ([row[one] for one in keys] + speeds(row) for row in found)), ""]
    return lines


def tensors(result: Result) -> list[str]:
    head = ("tensors", "gradient in", "model MB", *SPEEDS)
    return grid(head, ([row["tensors"], row["gradient"], row["model_mb"], *speeds(row)] for row in result["rows"]))


def pulls(result: Result) -> list[str]:
    head = ("policy", "readers", "MB/s", "CPU s/GB", "of each server", "MB/s a core of three machines")
    rows = []
    for row in result["rows"]:
        servers = ", ".join(number(cost) for cost in row["server_cpu_s_per_gb"])
        bound = row["server_bound_mb_per_s_per_core"]
        rows.append([row["policy"], row["workers"], row["mb_per_s"], row["cpu_s_per_gb"], servers, bound])
    return grid(head, rows)


def memory(result: Result) -> list[str]:
    head = ("model MB", "peak MB of each server", "two versions and slots MB", "windows MB", "allowed MB", "snapshots")
    rows = []
    for row in result["rows"]:
        peaks = ", ".join(number(peak) for peak in row["server_peak_mb"])
        windows = ", ".join(f"{name} {number(size)}" for name, size in row["windows_mb"].items())
        written = ", ".join(map(str, row["snapshots_by_server"]))
        rows.append([row["model_mb"], peaks, row["state_mb"], windows, row["allowed_mb"], written])
    return grid(head, rows)


def terms(result: Result) -> list[str]:
    lines = grid(
        ("term", "CPU s/GB", "what"), ([row["term"], row["cpu_s_per_gb"], row["what"]] for row in result["terms"])
    )
    python = result["python"]
    lines += [f"| python | {number(python['cpu_s_per_gb'])} | {python['what']} |", ""]
    names = list(next(iter(result["floor"].values()))["shares"])
    rows = []
    for workers, floor in result["floor"].items():
        ours = next(row for row in result["rows"] if f"w{row['workers']}" == workers and not row.get("tiny_blocks"))
        cost, least = ours["cpu_s_per_gb"], floor["cpu_s_per_gb"]
        shares = [floor["shares"][name] for name in names]
        rows.append([ours["workers"], *shares, least, cost, round(cost / least, 2)])
    return [*lines, *grid(("workers", *names, "floor", "measured", "times the floor"), rows)]


TITLES = {
    "figures": "Beside others, and one replica",
    "tensors": "Many small tensors",
    "pulls": "Pulls alone",
    "memory": "Memory of servers",
    "sweep": "How a step's cost grows",
    TERMS: "The floor, term by term",
}
TABLES = {"figures": figures, "tensors": tensors, "pulls": pulls, "memory": memory, "sweep": sweep, TERMS: terms}


def spliced(text: str, block: str) -> str:
    """The documentation's text with what stands between the two marks replaced."""
    return common.spliced(text, block, BEGIN, END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the folder in which the JSON files and plots lie")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between this file's marks")
    options = parser.parse_args()
    block = page(load(options.results), options.results)
    if options.write is None:
        print(block)
    else:
        options.write.write_text(spliced(options.write.read_text(), block))


if __name__ == "__main__":
    main()
