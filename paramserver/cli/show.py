"""How training is shown: a live panel on a terminal that can, lines everywhere else.

Owns the choice between the two and the verdict's box. Invariants: rich is used only when the stream is a terminal and
rich is there; nothing from outside is ever read as markup. Must not know: clusters and workers, only what they report.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TextIO

from paramserver.cli.text import escape

PLAIN_EVERY_S = 2.0
LIVE_PER_S = 8
BAR_WIDTH = 30


@dataclass(frozen=True, slots=True)
class Facts:
    """One moment of training."""

    title: str
    step: int
    steps: int
    loss: float | None = None
    accuracy: float | None = None
    steps_per_s: float = 0.0
    leaders: Mapping[int, int] | None = None
    """Group -> node or address, None where it is unknown."""
    notes: Sequence[str] = ()
    """What is down, what is waited for."""


class Screen(Protocol):
    """`update` as often as one likes, `event` for what should stay on the screen."""

    def update(self, facts: Facts) -> None: ...

    def event(self, text: str, *, strong: bool = False) -> None: ...

    def __enter__(self) -> Screen: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def screen(stream: TextIO, *, plain: bool = False) -> Screen:
    return LiveScreen(stream) if can_be_live(stream, plain=plain) else PlainScreen(stream)


def can_be_live(stream: TextIO, *, plain: bool = False) -> bool:
    if plain or not stream.isatty() or os.environ.get("TERM", "") in ("", "dumb"):
        return False
    return importlib.util.find_spec("rich") is not None


class PlainScreen:
    """A line when there is something to say, and one every two seconds while training goes on. Training goes on, too,
    when nobody reads them any more."""

    def __init__(self, stream: TextIO, every_s: float = PLAIN_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._shown_s = 0.0
        self._last = ""

    def update(self, facts: Facts) -> None:
        now = time.monotonic()
        if now - self._shown_s < self._every_s:
            return
        line = one_line(facts)
        if line != self._last:
            self._shown_s, self._last = now, line
            self._print(line)

    def event(self, text: str, *, strong: bool = False) -> None:
        self._print(("* " if strong else "  ") + escape(text, 500))

    def _print(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self._stream, flush=True)

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def one_line(facts: Facts) -> str:
    parts = [f"{escape(facts.title)}: step {facts.step}/{facts.steps}"]
    if facts.loss is not None:
        parts.append(f"loss {facts.loss:.4f}")
    if facts.accuracy is not None:
        parts.append(f"accuracy {facts.accuracy:.2%}")
    if facts.steps_per_s:
        parts.append(f"{facts.steps_per_s:.1f} steps/s")
    if facts.leaders:
        parts.append("leaders " + leaders_text(facts.leaders))
    parts += [escape(note) for note in facts.notes]
    return "  ".join(parts)


def leaders_text(leaders: Mapping[int, Any]) -> str:
    return " ".join(f"{group}:{escape(node)}" for group, node in sorted(leaders.items()))


class LiveScreen:
    """rich's live panel at the bottom, events scroll above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, refresh_per_second=LIVE_PER_S, transient=True)

    def update(self, facts: Facts) -> None:
        self._live.update(_panel(facts))

    def event(self, text: str, *, strong: bool = False) -> None:
        from rich.text import Text

        self._live.console.print(Text(escape(text, 500), style="bold yellow" if strong else ""))

    def __enter__(self) -> LiveScreen:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def _panel(facts: Facts) -> Any:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    done = min(1.0, facts.step / facts.steps) if facts.steps else 0.0
    full = int(done * BAR_WIDTH)
    grid = Table.grid(padding=(0, 2))
    bar = Text("━" * full, style="green") + Text("━" * (BAR_WIDTH - full), style="dim")
    grid.add_row(
        Text("step", style="dim"), bar + Text(f"  {facts.step}/{facts.steps}   {facts.steps_per_s:.1f} steps/s")
    )
    loss = "-" if facts.loss is None else f"{facts.loss:.4f}"
    accuracy = "-" if facts.accuracy is None else f"{facts.accuracy:.2%}"
    grid.add_row(Text("loss", style="dim"), Text(f"{loss}   held-out accuracy {accuracy}"))
    if facts.leaders is not None:
        shown = "   ".join(f"group {group}: node {escape(node)}" for group, node in sorted(facts.leaders.items()))
        grid.add_row(Text("leaders", style="dim"), Text(shown or "-"))
    for note in facts.notes:
        grid.add_row(Text("!", style="bold red"), Text(escape(note), style="red"))
    return Panel(grid, title=Text(escape(facts.title)), title_align="left", expand=False)


def box(title: str, rows: Sequence[tuple[str, str]], stream: TextIO, *, plain: bool, good: bool) -> None:
    """The last thing on the screen: names and figures."""
    if can_be_live(stream, plain=plain):
        from rich.console import Console
        from rich.panel import Panel
        from rich.text import Text

        lines = [Text.assemble((f"{name}: ", "dim"), escape(value, 500)) for name, value in rows]
        colour = "green" if good else "red"
        Console(file=stream, highlight=False, markup=False, emoji=False).print(
            Panel(
                Text("\n").join(lines), title=Text(escape(title)), title_align="left", border_style=colour, expand=False
            )
        )
        return
    print(escape(title), file=stream)
    for name, value in rows:
        print(f"  {name}: {escape(value, 500)}", file=stream)
    stream.flush()
