"""Tables of the peers' drill, beside ours from a run of `paramserver chaos run`.

    python -m benchmarks.faults.peers.report PEERS.json --ours CHAOS.json --write docs/faults.md README.md

Owns what is shown. Invariant: every number in the documentation's tables comes from a result file, by this command.
A page shows the long table between its marks, and the README the short one. Must not know: how anything is measured.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from benchmarks.common import targets
from benchmarks.faults.peers.judge import ENDED, ERROR, HANG, NOTHING
from benchmarks.faults.peers.system import FAULTS, KILL_SERVER, KILL_WORKER, PAUSE_SERVER

Row: TypeAlias = dict[str, Any]
LONG = ("<!-- benchmarks.faults.peers: begin -->", "<!-- benchmarks.faults.peers: end -->")
SHORT = ("<!-- benchmarks.faults.peers.short: begin -->", "<!-- benchmarks.faults.peers.short: end -->")
NO_RESULT = "No result is stored yet; `make bench-faults` makes one."
OURS = "paramserver"
OUR_KINDS = {"kill_leader": KILL_SERVER, "pause_leader": PAUSE_SERVER, "kill_worker": KILL_WORKER}
OUR_LABEL = (
    "three servers, two loads of two ranks each; the drill is a run of `paramserver chaos run` (fsync of a majority; "
    "synchronous steps)"
)
SAID = {
    KILL_SERVER: "server, leader or primary killed (-9)",
    PAUSE_SERVER: "the same stopped for {pause_s:g} s (SIGSTOP)",
    KILL_WORKER: "worker killed (-9)",
}


def from_chaos(result: dict[str, Any]) -> list[Row]:
    """Ours as episodes of the drill; what was invalid there is left out."""
    rows = []
    for fault in result["faults"]:
        if fault["kind"] in OUR_KINDS and not fault["invalid"]:
            error = fault["error"] if fault["error"] != "none" else None
            rows.append(
                {
                    "peer": OURS,
                    "fault": OUR_KINDS[fault["kind"]],
                    "seen": HANG if fault["hang"] else ERROR if error else NOTHING,
                    "what": error,
                    "after_ms": None,
                    "goes_on": not fault["hang"],
                    "restarted": False,
                    "stall_ms": fault["stall_ms"],
                    "acknowledged": None,
                    "lost": fault["lost"],
                    "duplicated": fault["duplicated"],
                    "steps_redone": None,
                }
            )
    return rows


def page(result: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    if result is None:
        return NO_RESULT
    episodes = ([] if ours is None else from_chaos(ours)) + result["episodes"]
    lines = []
    for fault in FAULTS:
        lines += [f"**{heading(fault, result)}**", "", *long_table(fault, episodes), ""]
    labels = {name: f"{one['label']} ({one['durability']}; {one['load']})" for name, one in result["peers"].items()}
    if ours is not None:
        labels = {OURS: OUR_LABEL, **labels}
    lines += [f"- {name}: {label}" for name, label in labels.items()]
    lines += ["", *(f"Not run: {name}: `{how}`." for name, how in result["missing"].items())]
    invalid = [one for one in episodes if "invalid" in one]
    lines += [f"Invalid: {one['peer']}, {one['fault']}, seed {one['seed']}." for one in invalid]
    lines += ["", provenance(result)]
    if ours is not None:
        lines.append(f"Ours: `{ours['command']}`, seed {ours['seed']}.")
    return "\n".join(lines)


def heading(fault: str, result: dict[str, Any]) -> str:
    said = SAID[fault].format(**result["settings"])
    return said[0].upper() + said[1:]


def long_table(fault: str, episodes: Iterable[Row]) -> list[str]:
    lines = [
        "| system | runs | your script sees | after ms | stands still ms: median, max | lost | twice | goes on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in grouped(fault, episodes):
        cells = [name, len(found), sees(found), after(found), stall(found), lost(found), twice(found), goes_on(found)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def short(result: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    """For the README: the server killed, a line a system."""
    if result is None:
        return NO_RESULT
    episodes = ([] if ours is None else from_chaos(ours)) + result["episodes"]
    lines = [
        "| server, leader or primary killed (-9) | your script sees | stands still, median | updates lost | goes on |",
        "|---|---|---|---|---|",
    ]
    for name, found in grouped(KILL_SERVER, episodes):
        stalls = [one["stall_ms"] for one in found if one["stall_ms"] is not None]
        still = f"{median(stalls):,.0f} ms" if stalls else "for good"
        lines.append(f"| {name} | {sees(found, brief=True)} | {still} | {lost(found)} | {goes_on(found)} |")
    return "\n".join(lines)


def grouped(fault: str, episodes: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    found: dict[str, list[Row]] = {}
    for one in episodes:
        if one["fault"] == fault and "invalid" not in one:
            found.setdefault(one["peer"], []).append(one)
    return list(found.items())


# --- cells


def sees(found: Sequence[Row], *, brief: bool = False) -> str:
    parts = []
    for seen, count in Counter(one["seen"] for one in found).most_common():
        what = Counter(one["what"] for one in found if one["seen"] == seen and one["what"])
        said = {NOTHING: "nothing", ERROR: "an error", HANG: "a hang", ENDED: "its end"}[seen]
        if what:
            text = what.most_common(1)[0][0]
            said = f"`{escaped(text.partition(':')[0] if brief else text)}`"
        parts.append(said + (f" ({count} of {len(found)})" if count < len(found) else ""))
    return ", ".join(parts)


def escaped(text: str) -> str:
    """For a cell: what an error says may hold anything."""
    return "".join(one if one.isprintable() and one not in "|`<>" else " " for one in text)


def after(found: Sequence[Row]) -> str:
    times = [one["after_ms"] for one in found if one["after_ms"] is not None]
    return targets.number(round(median(times))) if times else "-"


def stall(found: Sequence[Row]) -> str:
    times = [one["stall_ms"] for one in found if one["stall_ms"] is not None]
    return f"{median(times):,.0f}, {max(times):,.0f}" if times else "for good"


def lost(found: Sequence[Row]) -> str:
    if all(one["restarted"] for one in found):
        redone = [one["steps_redone"] for one in found]
        return f"{span(redone)} steps done again"
    if all(one["lost"] is None for one in found):
        return "all"
    known = [one["lost"] for one in found if one["lost"] is not None]
    return span(known) + ("" if len(known) == len(found) else f"; all in {len(found) - len(known)} of {len(found)}")


def twice(found: Sequence[Row]) -> str:
    known = [one["duplicated"] for one in found if one["duplicated"] is not None]
    return span(known) if known else "-"


def goes_on(found: Sequence[Row]) -> str:
    if all(one["restarted"] for one in found):
        return "restarted from a checkpoint"
    count = sum(one["goes_on"] for one in found)
    return {len(found): "by itself", 0: "no: the job must be restarted"}.get(count, f"{count} of {len(found)}")


def span(values: Sequence[int]) -> str:
    """Of one run: all alike, or from and to."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def provenance(result: dict[str, Any]) -> str:
    machine, settings = result["machine"], result["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"Lost and twice: updates a run. A hang: nothing for {settings['hang_s']:g} s. A killed worker is started "
        f"again after {settings['worker_back_s']:g} s. `{result['command']}`, {result['wall_s']} s in all; "
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; {versions}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--ours", type=Path, metavar="FILE", help="what `paramserver chaos run` wrote")
    parser.add_argument(
        "--write", type=Path, nargs="+", metavar="FILE", help="put the tables between these files' marks"
    )
    options = parser.parse_args()
    result, ours = loaded(options.result), loaded(options.ours)
    if not options.write:
        print(page(result, ours))
    for path in options.write or ():
        path.write_text(written(path.read_text(), result, ours))


def loaded(path: Path | None) -> dict[str, Any] | None:
    if path is None or not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def written(text: str, result: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    """The page with what stands between its marks replaced."""
    for (begin, end), block in ((LONG, page(result, ours)), (SHORT, short(result, ours))):
        if begin in text:
            text = targets.spliced(text, block, begin, end)
    return text


if __name__ == "__main__":
    main()
