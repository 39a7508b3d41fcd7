"""Plots of stored results as PNG files; matplotlib comes with `make install-peers`.

    .venv-peers/bin/python -m benchmarks.pushpull.plots docs/benchmarks

Owns what is drawn. A plot without data is not drawn, and an older file of it is removed. Must not know: how anything is
measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.pushpull.report import PLOTS, Result, load

WIDTH, HEIGHT, DPI = 7.0, 4.0, 120
FLOOR_COLOURS = "tab20"


def systems(results: dict[str, Result], axes: Any) -> bool:
    """MB/s of every system at 64 MB fp32, over workers."""
    rows = [
        row for row in results.get("figures", {}).get("rows", []) if (row["model_mb"], row["codec"]) == (64, "fp32")
    ]
    names = list(dict.fromkeys(label(row) for row in rows))
    workers = sorted({row["workers"] for row in rows})
    for at, name in enumerate(names):
        rates = {row["workers"]: row["mb_per_s"] for row in rows if label(row) == name}
        places = [place + (at - (len(names) - 1) / 2) * 0.8 / len(names) for place in range(len(workers))]
        axes.bar(places, [rates.get(one, 0) for one in workers], 0.8 / len(names), label=name)
    axes.set_xticks(range(len(workers)), [str(one) for one in workers])
    axes.set(title="64 MB fp32, push and pull", xlabel="workers", ylabel="MB/s, all workers")
    return bool(rows)


def floor(results: dict[str, Result], axes: Any) -> bool:
    """The floor by its terms, beside what was measured."""
    result = results.get("terms", {})
    floors = result.get("floor", {})
    bottom = [0.0] * len(floors)
    colours = mpl.colormaps[FLOOR_COLOURS]
    names = list(next(iter(floors.values()))["shares"]) if floors else []
    for at, name in enumerate(names):
        heights = [one["shares"][name] for one in floors.values()]
        axes.bar([place - 0.2 for place in range(len(floors))], heights, 0.35, bottom, label=name, color=colours(at))
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    cost = {f"w{row['workers']}": row["cpu_s_per_gb"] for row in result.get("rows", []) if not row.get("tiny_blocks")}
    places = [place + 0.2 for place in range(len(floors))]
    axes.bar(places, [cost[one] for one in floors], 0.35, label="measured", color="lightgrey")
    axes.set_xticks(range(len(floors)), [one.removeprefix("w") for one in floors])
    axes.set(title="CPU seconds per GB pushed and pulled: the floor and ours", xlabel="workers", ylabel="CPU s/GB")
    return bool(floors)


def over(sweep: str, key: str, what: str, log: bool = True) -> Callable[[dict[str, Result], Any], bool]:
    """MB/s along one sweep, a line a system."""

    def draw(results: dict[str, Result], axes: Any) -> bool:
        rows = [row for row in results.get("sweep", {}).get("rows", []) if row["sweep"] == sweep]
        for name in dict.fromkeys(label(row) for row in rows):
            points = sorted((row[key], row["mb_per_s"]) for row in rows if label(row) == name)
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        if log:
            axes.set_xscale("log", base=2)
        ticks = sorted({row[key] for row in rows})
        axes.set_xticks(ticks, [f"{one:g}" for one in ticks])
        axes.set_ylim(bottom=0)
        axes.set(title=f"Push and pull over {what}", xlabel=what, ylabel="MB/s, all workers")
        return bool(rows)

    return draw


def label(row: dict[str, Any]) -> str:
    if row["system"] == "paramserver":
        return f"paramserver, {row['replicas']} replica{'s' * (row['replicas'] > 1)}"
    return f"{row['system']} (shared memory)" if "shared memory" in row["durability"] else str(row["system"])


DRAWN: dict[str, Callable[[dict[str, Result], Any], bool]] = {
    "systems": systems,
    "floor": floor,
    "workers": over("workers", "workers", "workers"),
    "sizes": over("sizes", "model_mb", "model size, MB"),
    "groups": over("groups", "groups", "data groups"),
    "delay": over("delay", "delay_ms", "delay between nodes, ms", log=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the JSON files; the plots go there, too")
    options = parser.parse_args()
    results = {result.get("suite", result["benchmark"]): result for result in load(options.folder)}
    for name in PLOTS:
        path = options.folder / f"{name}.png"
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
        if DRAWN[name](results, axes):
            axes.legend(fontsize="small")
            axes.grid(axis="y", alpha=0.3)
            figure.savefig(path, metadata={"Software": ""})
            print(path)
        else:
            path.unlink(missing_ok=True)
        plt.close(figure)


if __name__ == "__main__":
    main()
