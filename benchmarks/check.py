"""Whether a result is much worse than before: says which ratio fell by more than a fifth.

    python -m benchmarks.check docs/benchmarks/push_pull-figures.json [more results]
    python -m benchmarks.check --write docs/benchmarks/*.json     # these are what is compared with from now on

Ratios carry over from machine to machine better than figures, so they are what `benchmarks/baseline.json` keeps. Of
ratios whose names begin with `time_`, `memory_` or `cpu_` less is better: those may not grow so far that their inverse
falls by more than a fifth. Ends with 1 when a ratio fell, with 2 when there was nothing to compare. A ratio of the
baseline that no result has is named, and is no failure: a run may leave something out; with `--all` it is one. Results
of `--quick` runs are refused.

Owns the comparison and the baseline's form. Must not know: how anything is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).with_name("baseline.json")
FALL_MAX = 0.2
LESS_IS_BETTER = ("time_", "memory_", "cpu_")
FELL, NOTHING = 1, 2


@dataclass(frozen=True, slots=True)
class Change:
    """`share`: what is left of the baseline's value, for better or worse: 0.7 is three tenths worse, however the
    ratio counts."""

    name: str
    before: float
    now: float

    @property
    def share(self) -> float:
        better, worse = (self.before, self.now) if less_is_better(self.name) else (self.now, self.before)
        return better / worse if worse > 0 else float("inf")

    @property
    def fell(self) -> bool:
        return not self.share >= 1 - FALL_MAX  # NaN fell

    def __str__(self) -> str:
        said = "FELL" if self.fell else "ok"
        return f"{said:4}  {self.name}: {self.before:g} -> {self.now:g} ({self.share - 1:+.0%})"


def less_is_better(name: str) -> bool:
    return name.startswith(LESS_IS_BETTER)


def changes(baseline: Mapping[str, float], measured: Mapping[str, float]) -> tuple[list[Change], list[str]]:
    """(those that both have, names that only the baseline has)"""
    both = [Change(name, before, measured[name]) for name, before in baseline.items() if name in measured]
    return both, [name for name in baseline if name not in measured]


def read(paths: Sequence[Path]) -> dict[str, float]:
    """The ratios of all results. Raises SystemExit that names the file."""
    found: dict[str, float] = {}
    for path in paths:
        try:
            result = json.loads(path.read_text())
            values = result["ratios"]
            found |= {str(name): float(value) for name, value in values.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(f"{path}: expected a benchmark's JSON with `ratios` ({error!r})") from None
        if result.get("quick"):
            raise SystemExit(f"{path}: of a --quick run, which measures nothing worth comparing")
    return found


def write(baseline: Path, paths: Sequence[Path], measured: Mapping[str, float]) -> None:
    """What no result has stays as it was."""
    known: dict[str, Any] = json.loads(baseline.read_text()) if baseline.exists() else {}
    ratios = {**known.get("ratios", {}), **measured}
    first = json.loads(paths[0].read_text())
    text = {"machine": first.get("machine"), "ratios": dict(sorted(ratios.items()))}
    baseline.write_text(json.dumps(text, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--all", action="store_true", help="a ratio that was not measured is a failure")
    parser.add_argument("--write", action="store_true", help="make these the baseline")
    options = parser.parse_args(arguments)
    measured = read(options.results)
    if options.write:
        write(options.baseline, options.results, measured)
        print(f"{options.baseline}: {len(measured)} ratios")
        return 0
    compared, missing = changes(read([options.baseline]), measured)
    for change in compared:
        print(change)
    for name in missing:
        print(f"not measured: {name}")
    if any(change.fell for change in compared) or (options.all and missing):
        return FELL
    if not compared:
        print("nothing to compare: no ratio of the baseline is in these results", file=sys.stderr)
        return NOTHING
    return 0


if __name__ == "__main__":
    sys.exit(main())
