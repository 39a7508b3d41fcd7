"""The command `paramserver`: demo, server, worker, status.

The roof: may import everything below, and does so only inside the subcommand that needs it, so that the command starts
in under 300 ms. Exit codes are in `codes`.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; `argv` without the program's name (default: this process's). Returns the exit code."""
    from paramserver.cli.entry import run

    return run(argv)
