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
