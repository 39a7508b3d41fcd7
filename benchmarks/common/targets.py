"""What a benchmark should reach, and how tables and documentation show it.

Owns the judgement of a figure, and the splicing of tables between two marks of a page. Invariant: what was not
measured is said to be so, never met. Must not know: what is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """`at_least` must be reached (None: nothing must), `aim` is hoped for. Of times and costs (`less`) a smaller value
    is better."""

    name: str
    what: str
    at_least: float | None
    aim: float | None
    less: bool = False

    def meets(self, value: float | None, bound: float | None) -> bool | None:
        if value is None or bound is None:
            return None
        return value <= bound if self.less else value >= bound

    def judged(self, value: float | None, note: str = "") -> Row:
        """`met` is None when nothing was measured, or nothing must be reached."""
        return {
            "name": self.name,
            "what": self.what,
            "better": "less" if self.less else "more",
            "target": self.at_least,
            "aim": self.aim,
            "value": value,
            "met": self.meets(value, self.at_least),
            "aim_met": self.meets(value, self.aim),
            **({"note": note} if note else {}),
        }


def table(found: Iterable[Row]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| against | at least | aim | measured | |", "|---|---|---|---|---|"]
    for one in found:
        sign = "at most " if one["better"] == "less" else ""
        bounds = ["" if one[key] is None else sign + number(one[key]) for key in ("target", "aim")]
        value = one.get("note") or number(one["value"])
        lines.append(f"| {one['what']} | {bounds[0]} | {bounds[1]} | {value} | {_said(one)} |")
    return lines


def _said(one: Row) -> str:
    if one["met"] is None:
        if one["value"] is None:
            return "not measured"
        return "aim met" if one["aim_met"] else "aim missed"
    return ("met" if one["met"] else "missed") + (", aim too" if one["aim_met"] else "")


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:g}"


def spliced(text: str, block: str, begin: str, end: str) -> str:
    """The page's text with what stands between the two marks replaced."""
    found = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(found.findall(text)) != 1:
        raise SystemExit(f"{begin} and {end} must stand there once")
    return found.sub(lambda _: f"{begin}\n{block}\n{end}", text)
