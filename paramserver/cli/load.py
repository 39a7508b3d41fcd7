"""The part of `paramserver status` about bytes and load: what each group and each node holds, leads and does.

Must not know: how it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from paramserver.cli.text import escape, table

if TYPE_CHECKING:
    from paramserver.lab.status import Answer, LoadSnapshot

RATES = ("blocks in/s", "in/s", "back/s", "pulled/s")
"""Of the last ten seconds: blocks and bytes pushed here, bytes of them that went back updated, bytes sent to pulls."""


def as_json(answers: Sequence[Answer]) -> dict[str, Any]:
    """`groups` and `nodes`: what they hold, lead and do; counters since the processes began, and rates."""
    from paramserver.lab import loads

    return {
        "groups": [asdict(one) for one in loads.by_group(answers)],
        "nodes": [asdict(one) for one in loads.by_node(answers)],
    }


def lines(answers: Sequence[Answer]) -> list[str]:
    """The picture for people."""
    from paramserver.lab import loads

    groups, nodes = loads.by_group(answers), loads.by_node(answers)
    out: list[str] = []
    if groups:
        rows = [
            (str(one.group), str(one.leader or "none"), str(one.blocks), size(one.weight_bytes),
             size(one.state_bytes), *_rates(one.load))
            for one in groups
        ]  # fmt: skip
        out += ["", *table(("group", "leader", "blocks", "weights", "state", *RATES), rows)]
    if nodes:
        rows = [
            (str(one.node), escape(one.zone) or "-", str(one.groups), " ".join(map(str, one.leads)) or "-",
             str(one.blocks_led), size(one.weight_bytes_led), str(one.blocks), size(one.state_bytes),
             *_rates(one.load))
            for one in nodes
        ]  # fmt: skip
        head = ("node", "zone", "groups", "leads", "blocks led", "weights led", "blocks held", "state", *RATES)
        out += ["", *table(head, rows)]
    return out


def _rates(load: LoadSnapshot) -> tuple[str, ...]:
    shown = (load.pushed_bytes_per_s, load.returned_bytes_per_s, load.pulled_bytes_per_s)
    return (f"{load.pushes_per_s:.0f}", *(size(round(one)) for one in shown))


def size(count: int) -> str:
    for unit, bytes_each in (("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)):
        if count >= bytes_each:
            return f"{count / bytes_each:.1f} {unit}"
    return f"{count} B"
