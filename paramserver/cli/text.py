"""Text for terminals and logs.

Invariant: whatever came from outside (names, addresses, messages of servers) passes `escape` before it is printed, so
it can neither move the cursor nor pretend to be another line.
"""

from __future__ import annotations

from collections.abc import Sequence

WIDTH_MAX = 200
"""Characters of one escaped value; longer ones are cut with an ellipsis."""

SENTENCE_MAX = 1000
"""The same for a sentence of a server: its end is where the repair stands."""


def escape(value: object, width_max: int = WIDTH_MAX) -> str:
    """Printable form of `value`: control characters, line breaks and bidirectional marks as \\x.., \\u...."""
    text = "".join(letter if letter.isprintable() else _code(letter) for letter in str(value))
    return text if len(text) <= width_max else text[: width_max - 1] + "…"


def _code(letter: str) -> str:
    number = ord(letter)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, two spaces between; nothing at the end of a line."""
    columns = [list(column) for column in zip(head, *rows, strict=True)]
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = []
    for row in (head, *rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return lines
