"""Flags that report all their problems at once.

argparse ends at the first wrong flag. Here it only splits the command line: every value is read as text, then
converted by `read`, which collects what is missing, unknown (with a did-you-mean), without a value or of the wrong
form. Nothing is started before the list is empty (FAULTS bad input 22). Must not import anything heavy.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from paramserver.cli.codes import UsageProblems
from paramserver.cli.text import escape

_NO_VALUE = "\0no value"
"""What argparse stores for a flag that was given without one."""
_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Flag:
    """`convert` takes the text and raises ValueError with the expected form. `help` is shown with the default. A name
    without dashes stands for a word of its own, in the order of the flags."""

    name: str
    help: str
    convert: Callable[[str], Any] | None = None
    """None: a switch without a value."""
    default: Any = None
    metavar: str = ""
    required: bool = False
    short: str = ""
    """Another name: one dash, one letter."""

    @property
    def key(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")


class Values:
    """Converted flags by their key; what had a problem holds its default."""

    command: tuple[str, ...] = ()
    """What stood after `--`, for the one that starts it."""

    def __init__(self, values: dict[str, Any], given: frozenset[str]) -> None:
        self._values = values
        self.given = given
        """Keys that stood on the command line in a readable form."""

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def set_ones(self, keys: Iterable[str]) -> dict[str, Any]:
        """Those of `keys` that were given: everything else keeps the default of whom they are passed to."""
        return {key: self._values[key] for key in keys if key in self.given}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Values are never optional here, though argparse is told so (see `add`)."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.OPTIONAL:
            return str(action.metavar or default_metavar)
        return super()._format_args(action, default_metavar)


def add(parser: argparse.ArgumentParser, flags: Sequence[Flag]) -> None:
    for flag in flags:
        if flag.convert is None:
            parser.add_argument(flag.name, action="store_true", help=flag.help, default=False)
            continue
        shown = "" if flag.default is None else f" (default {flag.default})"
        text = (flag.help + (" (required)" if flag.required else shown)).replace("%", "%%")
        names = [flag.short, flag.name] if flag.short else [flag.name]
        parser.add_argument(
            *names, nargs="?", const=_NO_VALUE, default=None, metavar=flag.metavar or flag.key.upper(), help=text
        )


def read(
    flags: Sequence[Flag], parsed: argparse.Namespace, unknown: Sequence[str], others: Sequence[str] = ()
) -> tuple[Values, list[str]]:
    """Values and all problems. `unknown` is what argparse could not place, `others` further flags to suggest."""
    problems = list(unknown_problems(unknown, [*(flag.name for flag in flags), *others]))
    values: dict[str, Any] = {}
    given: set[str] = set()
    for flag in flags:
        text = getattr(parsed, flag.key)
        values[flag.key] = flag.default
        if flag.convert is None:
            values[flag.key] = text
            if text:
                given.add(flag.key)
        elif text is None:
            if flag.required:
                problems.append(f"{flag.name} is missing: {flag.help}")
        elif text == _NO_VALUE:
            problems.append(f"{flag.name} needs a value ({flag.metavar or flag.key.upper()}): {flag.help}")
        else:
            try:
                values[flag.key] = flag.convert(text)
                given.add(flag.key)
            except ValueError as error:
                problems.append(f"{flag.name} '{escape(text)}': {error}")
    return Values(values, frozenset(given)), problems


def unknown_problems(unknown: Sequence[str], known: Sequence[str]) -> Iterable[str]:
    was_flag = False
    for text in unknown:
        if text.startswith("--"):
            name = text.split("=", 1)[0]
            yield f"unknown flag {escape(name)}{did_you_mean(name, known)}"
            was_flag = "=" not in text
        elif not was_flag:
            yield f"unexpected argument '{escape(text)}'"
        else:
            was_flag = False  # most likely the unknown flag's value


def raise_problems(problems: list[str], command: str) -> None:
    """All at once, or nothing."""
    if problems:
        raise UsageProblems(problems, f"paramserver {command} --help shows the flags; nothing was started")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


# --- converters: ValueError says what was expected


def integer(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text, 10)
        except ValueError:
            raise ValueError(f"expected a whole number from {low} to {high}") from None
        if not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return value

    return convert


def number(low: float, high: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"expected a number from {low:g} to {high:g}") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return value

    return convert


def choice(*names: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in names:
            raise ValueError(f"expected one of {', '.join(names)}{did_you_mean(text, names)}")
        return text

    return convert


CODECS = ("fp32", "bf16", "fp16")
"""As `paramserver.wire.spec.codec_named` knows them; commands start without importing it."""


def text_value(text: str) -> str:
    if not text:
        raise ValueError("expected something, got nothing")
    return text


def endpoint(text: str) -> str:
    """`host:port`, `[v6]:port`; the port from 1 to 65535."""
    host, colon, port = text.rpartition(":")
    fine = bool(colon) and bool(host) and host.isprintable() and " " not in host and "/" not in host
    if fine and ":" in host and not (host.startswith("[") and host.endswith("]")):
        fine = False
    if not fine or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(
            f"expected host:port with a port from 1 to 65535, such as 127.0.0.1:7001, got '{escape(text)}'"
        )
    return text


def endpoints(text: str) -> tuple[str, ...]:
    """`host:port,host:port,...`"""
    found = tuple(endpoint(one.strip()) for one in text.split(",") if one.strip())
    if not found:
        raise ValueError("expected host:port,host:port,...")
    if len(set(found)) != len(found):
        raise ValueError("an endpoint stands there twice")
    return found


def members(text: str) -> dict[int, str]:
    """`1=host:port,2=host:port,...`: the same list on every node."""
    found: dict[int, str] = {}
    for one in (part.strip() for part in text.split(",")):
        name, equals, address = one.partition("=")
        if not equals or not name.isascii() or not name.isdigit() or not 1 <= int(name) <= 65535:
            raise ValueError(f"expected 1=host:port,2=host:port,... with nodes from 1 to 65535, got '{escape(one)}'")
        if int(name) in found:
            raise ValueError(f"node {int(name)} stands there twice")
        if address in found.values():
            raise ValueError(f"address {escape(address)} stands there twice")
        found[int(name)] = endpoint(address)
    return found


def detours(text: str) -> dict[str, str]:
    """`host:port=host:port,...`: an address, and what is dialled instead of it."""
    found: dict[str, str] = {}
    for one in (part.strip() for part in text.split(",")):
        address, equals, instead = one.partition("=")
        if not equals:
            raise ValueError(f"expected host:port=host:port,..., got '{escape(one)}'")
        if endpoint(address) in found:
            raise ValueError(f"address {escape(address)} stands there twice")
        found[address] = endpoint(instead)
    return found
