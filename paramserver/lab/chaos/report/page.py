"""A result as one HTML page: tables, and the pictures that it is given.

Owns what is told and how it is laid out. Invariants: self-contained (no script, no network: its own policy forbids
both); every text that comes from a result is escaped, for names and errors may hold anything; a figure that there is
none for is a dash, never 0. Must not know: how pictures are drawn, how anything was measured.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

from paramserver.lab.chaos.report.look import FINE, INVALID, colour_of, outcome
from paramserver.lab.chaos.report.style import STYLE
from paramserver.lab.chaos.result import NO_ERROR, ChaosResult, Distribution, FaultResult

NO_PICTURES = "No pictures: they are drawn by matplotlib, which pip install 'paramserver[lab]' brings."
DASH = "–"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NOTES_SHOWN_MAX = 3


@dataclass(frozen=True, slots=True)
class Picture:
    """`svg`: a whole document; shown as an image, so that nothing in it can act."""

    title: str
    says: str
    svg: bytes


@dataclass(frozen=True, slots=True)
class Raw:
    """HTML that was made here, of escaped parts."""

    html: str


def page(result: ChaosResult, pictures: Sequence[Picture]) -> str:
    """The whole document."""
    title = f"Faults: {result.suite}, seed {result.seed}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        verdict(result),
        how(result),
        "<h2>By kind of fault</h2>",
        by_kind(result),
        *(picture(one) for one in pictures),
        *([] if pictures else [f"<p class=note>{escape(NO_PICTURES)}</p>"]),
        "<h2>Every fault</h2>",
        every_fault(result),
        "<h2>Clusters</h2>",
        stages(result),
        *growth(result),
        "<h2>Where it ran</h2>",
        environment(result),
        "<h2>The plan</h2>",
        "<details><summary>as a plan file has it</summary>",
        f"<pre>{escape(json.dumps(result.plan, indent=1))}</pre></details>",
    ]
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
    )
    return f"{head}<body>{''.join(parts)}</body></html>\n"


# --- parts


def verdict(result: ChaosResult) -> str:
    summary = result.summary
    figures = (
        ("faults", summary.faults, False),
        ("invalid", summary.invalid, summary.invalid > 0),
        ("updates lost", summary.lost, summary.lost > 0),
        ("applied twice", summary.duplicated, summary.duplicated > 0),
        ("stale reads", summary.stale_reads, summary.stale_reads > 0),
        ("other bits", summary.not_identical, summary.not_identical > 0),
        ("hangs", summary.hangs, summary.hangs > 0),
    )
    cards = "".join(
        f'<div class="card{" bad" if bad else ""}"><b>{value}</b><span>{name}</span></div>'
        for name, value, bad in figures
    )
    said = "passed" if result.passed else "failed"
    found = f'<p class="verdict {said}">{said}</p><div class=cards>{cards}</div>'
    if result.problems:
        found += "<ul class=problems>" + "".join(f"<li>{escape(one)}</li>" for one in result.problems) + "</ul>"
    if result.kept:
        found += f"<p>Logs and data folders: <code>{escape(result.kept)}</code></p>"
    return found


def how(result: ChaosResult) -> str:
    rows: list[list[object]] = [
        ["command", code(result.command)],
        ["the same plan again", code(result.replay)],
        ["begun", f"{result.begun}, {result.seconds:g} s in all"],
        ["durability", result.durability],
    ]
    rows += [[f"load: {name}", said(load)] for name, load in result.loads.items()]
    return table((), rows, "facts")


def by_kind(result: ChaosResult) -> str:
    head = (
        "fault", "runs", "seen as", "stall ms: median", "p99", "max", "as it heals: median", "max", "reads away ms",
        "writes away ms", "p99 step, times usual", "lost", "twice", "stale", "same bits", "leader changes",
    )  # fmt: skip
    kinds: dict[str, list[FaultResult]] = {}
    for one in result.faults:
        kinds.setdefault(one.kind, []).append(one)
    rows: list[list[object]] = []
    for kind, all_of in kinds.items():
        valid = [one for one in all_of if one.valid]
        if not valid:
            rows.append([kind, f"0 of {len(all_of)}", "invalid", *[DASH] * (len(head) - 3)])
            continue
        stall = result.summary.stall_ms.get(kind, Distribution(p50=None, p99=None, max=None, n=0))
        heals = [one.recovery_stall_ms for one in valid if one.recovery_stall_ms is not None]
        ratios = [one.step_p99_ratio for one in valid if one.step_p99_ratio is not None]
        rows.append(
            [
                kind, len(valid) if len(valid) == len(all_of) else f"{len(valid)} of {len(all_of)}", seen(valid),
                ms(stall.p50), ms(stall.p99), ms(stall.max), ms(middle(heals)), ms(max(heals, default=None)),
                ms(middle([one.reads_unavailable_ms for one in valid])),
                ms(middle([one.writes_unavailable_ms for one in valid])),
                DASH if not ratios else f"{median(ratios):.1f}",
                wrong(sum(one.lost for one in all_of)), wrong(sum(one.duplicated for one in all_of)),
                wrong(sum(one.stale_reads for one in all_of)),
                "yes" if all(one.bit_identical for one in all_of) else bad("no"),
                f"{sum(one.leader_changes for one in valid) / len(valid):.1f}",
            ]
        )  # fmt: skip
    rows += [[kind, "0", f"not run: {why}", *[DASH] * (len(head) - 3)] for kind, why in result.skipped.items()]
    note = "Times are medians over the runs unless they say otherwise. Away: time without an answer."
    return table(head, rows, "numbers") + f"<p class=note>{note}</p>"


def seen(valid: Sequence[FaultResult]) -> object:
    hangs = sum(one.hang for one in valid)
    if hangs:
        return bad(f"hang ({hangs} of {len(valid)})")
    errors = sorted({one.error for one in valid if one.error != NO_ERROR})
    return ", ".join(errors) if errors else "a pause" if any((one.stall_ms or 0) >= 10 for one in valid) else "nothing"


def picture(one: Picture) -> str:
    data = base64.b64encode(one.svg).decode()
    return (
        f"<h2>{escape(one.title)}</h2><p class=note>{escape(one.says)}</p><div class=wide>"
        f'<img alt="{escape(one.title)}" src="data:image/svg+xml;base64,{data}"></div>'
    )


def every_fault(result: ChaosResult) -> str:
    head = (
        "#", "at s", "fault", "struck", "drawn", "held s", "seen as", "stall ms", "as it heals",
        "steps before, during, after",
        "commits before, during, after", "lost", "twice", "stale", "same bits", "leader changes", "notes",
    )  # fmt: skip
    rows: list[list[object]] = []
    for number, one in enumerate(result.faults, start=1):
        what = outcome(one)
        mark = Raw(f'<span class=dot style="background:{colour_of(one)}"></span>')
        notes = [one.invalid] * bool(one.invalid) + list(one.notes[:NOTES_SHOWN_MAX])
        rows.append(
            [
                Raw(f"{mark.html}{number}"), f"{one.start_ms / 1000:.1f}", one.kind, one.target, said(one.parameters),
                f"{(one.end_ms - one.start_ms) / 1000:.2f}",
                bad("hang") if one.hang else what if what not in (FINE, INVALID) else said_error(one),
                ms(one.stall_ms), ms(one.recovery_stall_ms),
                f"{one.steps.before}, {one.steps.during}, {one.steps.after}",
                f"{one.commits.before}, {one.commits.during}, {one.commits.after}",
                wrong(one.lost), wrong(one.duplicated), wrong(one.stale_reads),
                "yes" if one.bit_identical else bad("no"), one.leader_changes, "; ".join(notes),
            ]
        )  # fmt: skip
    return table(head, rows, "numbers long")


def said_error(one: FaultResult) -> str:
    return "nothing" if one.error == NO_ERROR else one.error


def stages(result: ChaosResult) -> str:
    head = (
        "cluster",
        "nodes",
        "links of ours",
        "disk and clock can fail",
        "seconds",
        "undisturbed steps, ms",
        "at its end",
    )
    rows: list[list[object]] = []
    for one in result.stages:
        usual = "; ".join(
            f"{load}: p50 {ms(some.p50)}, p99 {ms(some.p99)}, n {some.n}" for load, some in one.undisturbed.items()
        )
        rows.append(
            [
                one.name, one.nodes, yes(one.proxied), yes(one.seams),
                f"{(one.end_ms - one.start_ms) / 1000:.1f}", usual,
                bad("; ".join(one.final)) if one.final else "every replica holds what it should",
            ]
        )  # fmt: skip
    return table(head, rows, "numbers")


def growth(result: ChaosResult) -> list[str]:
    if not result.growth:
        return []
    head = (
        "server",
        "minutes",
        "MB at first",
        "at last",
        "most",
        "MB a minute",
        "descriptors at first",
        "at last",
        "most",
        "a minute",
    )
    rows = [
        [
            f"node {one.node}, start {one.incarnation}", f"{one.minutes:.1f}",
            *(f"{size:.0f}" for size in (one.rss_mb_begin, one.rss_mb_end, one.rss_mb_max)),
            number(one.rss_mb_per_minute),
            one.descriptors_begin, one.descriptors_end, one.descriptors_max, number(one.descriptors_per_minute),
        ]
        for one in result.growth
    ]  # fmt: skip
    return ["<h2>Memory and descriptors</h2>", table(head, rows, "numbers")]


def environment(result: ChaosResult) -> str:
    rows: list[list[object]] = [
        ["machine", said(result.machine)],
        ["versions", said(result.versions)],
        ["format of the result", result.format],
    ]
    return table((), rows, "facts")


# --- cells


def table(head: Iterable[str], rows: Iterable[Sequence[object]], kind: str) -> str:
    top = "".join(f"<th>{escape(one)}</th>" for one in head)
    above = f"<thead><tr>{top}</tr></thead>" if top else ""
    body = "".join("<tr>" + "".join(f"<td>{cell(one)}</td>" for one in row) + "</tr>" for row in rows)
    return f'<div class=wide><table class="{kind}">{above}<tbody>{body}</tbody></table></div>'


def cell(value: object) -> str:
    return value.html if isinstance(value, Raw) else escape(str(value))


def code(text: str) -> Raw:
    return Raw(f"<code>{escape(text)}</code>")


def bad(text: str) -> Raw:
    return Raw(f"<b class=bad>{escape(text)}</b>")


def wrong(count: int) -> object:
    return bad(str(count)) if count else 0


def yes(value: bool) -> str:
    return "yes" if value else "no"


def said(values: Mapping[str, Any]) -> str:
    """`name value` pairs in a line."""
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def ms(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}"


def number(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None
