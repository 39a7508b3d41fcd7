"""The harness's end of `--fault-injection`: faults of one server's disk, clock and interpreter.

    cluster.faults(2).disk(slow_ms=1000)
    cluster.faults(2).disk(full=True)
    cluster.faults(2).disk(fsync_error=True)
    cluster.faults(2).clock(jump_s=7200)
    cluster.faults(2).stall(2)
    cluster.faults(2).heal()

Invariant: a call returns when the fault is in force (a stall: as it begins). A server that starts anew begins without
faults. Must not know: how a server brings them about, plans of faults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paramserver.lab.lines import LineClient


@dataclass(frozen=True, slots=True)
class FaultState:
    """What is wrong now, and how often it came true."""

    slow_ms: float
    full: bool
    sync_errors: int
    jump_s: float
    drift: float
    slowed: int
    refused: int
    failed_syncs: int


class NodeFaults:
    def __init__(self, node: int, path: str) -> None:
        self._client = LineClient(path, f"the fault injection of server {node}")

    def disk(self, *, slow_ms: float | None = None, full: bool | None = None, fsync_error: bool | None = None) -> None:
        """`slow_ms`: each write and each sync takes so much longer. `full`: whatever allocates space is refused.
        `fsync_error`: the next sync of a file fails. None: as it is."""
        wanted = {"slow_ms": slow_ms, "full": full, "sync_errors": None if fsync_error is None else int(fsync_error)}
        self._ask("disk", **{name: value for name, value in wanted.items() if value is not None})

    def clock(self, *, jump_s: float | None = None, drift: float | None = None) -> None:
        """The wall clock jumps from where it is, and gains `drift` seconds each second from now on."""
        wanted = {"jump_s": jump_s, "drift": drift}
        self._ask("clock", **{name: value for name, value in wanted.items() if value is not None})

    def stall(self, seconds: float, *, loop_only: bool = False) -> None:
        """No thread of the interpreter runs; `loop_only`: the event loop stands still, other threads go on. It ends by
        itself; nothing heals it before."""
        self._ask("stall", seconds=seconds, what="loop" if loop_only else "interpreter")

    def heal(self) -> None:
        self._ask("heal")

    def state(self) -> FaultState:
        found = self._ask("state")
        counts = found["counts"]
        return FaultState(
            slow_ms=found["slow_ms"],
            full=found["full"],
            sync_errors=found["sync_errors"],
            jump_s=found["jump_s"],
            drift=found["drift"],
            slowed=counts.get("slow", 0),
            refused=counts.get("full", 0),
            failed_syncs=counts.get("sync_errors", 0),
        )

    def _ask(self, op: str, **what: Any) -> dict[str, Any]:
        return self._client.ask({"op": op, **what})
