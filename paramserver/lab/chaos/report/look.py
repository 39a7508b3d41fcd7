"""What became of a fault in one word, and its colour: the same in tables and pictures.

Must not know: HTML, plots.
"""

from __future__ import annotations

from paramserver.lab.chaos.result import FaultResult

FINE, INVALID = "fine", "invalid"
COLOURS = {FINE: "#4c78a8", INVALID: "#e0a500", "failed": "#b3261e"}


def outcome(fault: FaultResult) -> str:
    """`fine`, `invalid`, or what was wrong."""
    wrong = (
        (fault.hang, "hang"),
        (fault.lost, "updates lost"),
        (fault.duplicated, "updates applied twice"),
        (fault.stale_reads, "stale reads"),
        (not fault.bit_identical, "other bits"),
    )
    found = ", ".join(said for was, said in wrong if was)
    return found or (FINE if fault.valid else INVALID)


def colour_of(fault: FaultResult) -> str:
    return COLOURS.get(outcome(fault), COLOURS["failed"])
