"""On what a figure was measured, and by which command."""

from __future__ import annotations

import sys

from paramserver.lab.machine import PACKAGES, machine, versions

__all__ = ["PACKAGES", "command", "machine", "versions"]


def command(module: str) -> str:
    return " ".join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])
