"""What a launcher tells a worker through the environment: `connect()` without servers reads it.

Invariant: nothing of it is read when the caller named servers. `paramserver launch` sets these; so may anybody else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from worker.errors import InvalidArgument

SERVERS = "PARAMSERVER_SERVERS"
SESSION = "PARAMSERVER_SESSION"
RANK = ("PARAMSERVER_RANK", "RANK")
RANKS = ("PARAMSERVER_RANKS", "WORLD_SIZE")
"""Ours first, then torchrun's."""

Place = TypeVar("Place")


def from_environment(
    servers: str | Sequence[str] | None, session_file: Place, environment: Mapping[str, str] = os.environ
) -> tuple[str | Sequence[str], Place | str]:
    """Servers and session file, both from the environment where `servers` is None. A session file that was given
    stays. Raises InvalidArgument."""
    if servers is not None:
        return servers, session_file
    found = environment.get(SERVERS, "")
    if not found.strip():
        raise InvalidArgument(
            f"servers: none given, and {SERVERS} is not set",
            "pass host:port,host:port, or start this with `paramserver launch`, which sets it",
        )
    return found, environment.get(SESSION) or None if session_file is None else session_file  # type: ignore[return-value]


def rank_from_environment(
    rank: int | None, ranks: int | None, environment: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """Which rank this process is, and how many there are: what was given, else the environment, else 0 of 1. Raises
    InvalidArgument."""
    found = []
    for given, names, otherwise in ((rank, RANK, 0), (ranks, RANKS, 1)):
        name = next((one for one in names if environment.get(one)), None)
        if given is not None or name is None:
            found.append(otherwise if given is None else given)
        elif not (environment[name].isascii() and environment[name].isdigit()):
            raise InvalidArgument(f"{name}={environment[name]!r} in the environment", "expected a whole number")
        else:
            found.append(int(environment[name]))
    return found[0], found[1]
