"""Kinds of faults, and faults as values.

Owns the vocabulary. Invariants: a fault says all that is needed to carry it out again, so a plan can be cut down and
run again; whoever is meant by "the leader" is decided when the fault comes. Must not know: how faults are drawn
(plans.py), carried out and undone (strikes.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from consensus.core.interface import GroupId, NodeId


class FaultKind(Enum):
    KILL = "kill"
    """The process ends at once; what it wrote stays in the page cache."""
    KILL_POWER = "kill, restart, power cut"
    """The same; it comes back at once, reads what was never synced, and then the machine ends (RULES W3)."""
    POWER = "power cut"
    """The machine ends: what was not synced is lost, or torn."""
    POWER_DURING_IO = "power cut during io"
    """The same, in the middle of one of the next IO calls."""
    RESTART_ALL = "everything restarts"
    """All processes, or all machines, end at the same moment and come back together (FAULTS 4, 20)."""
    SYNC_FAILS = "failing sync"
    """The next sync fails; the process must end by itself."""
    WRITE_FAILS = "failing io"
    """One of the next IO calls fails; the process must end by itself, or do without."""
    PAUSE = "pause"
    """SIGSTOP, then SIGCONT; connections stand."""
    STALL = "stalled loop"
    """The host's thread hangs; the disk and the lanes go on (FAULTS 19)."""
    CLOCK = "clock drift"
    """The monotonic clock runs too fast or too slow for a while."""
    CLOCK_JUMP = "clock jump"
    """The clock is suddenly later, by up to hours, as after a suspended machine. A monotonic one never goes back, and
    nothing here reads another."""
    CUT = "cut"
    """Nothing passes on some links, in the given direction; connections stand until a keepalive notices."""
    RESET = "reset"
    """Connections close, and come back."""
    CLOG = "clog"
    """What is sent over some links is late."""
    SLOW_DISK = "slow disk"
    FULL_DISK = "full disk"
    """Files can't grow beyond what they are now, and a little."""
    FLIP = "bit flip"
    """The process ends; a bit of what its disk surely holds is another when it comes back (RULES W7)."""
    MISDIRECT = "misdirected write"
    """The process ends; a batch of its log is found elsewhere than where it was written."""
    SNAPSHOT = "snapshot"
    """A snapshot is due now."""
    RECEIVER = "receiver struck"
    """The next node that is sent a piece of a snapshot ends in the middle of it (FAULTS 24)."""
    CLIENTS = "client crash"
    """Some clients forget what they asked for, and never ask again."""
    TRANSFER = "transfer"
    """A leader is told to hand over."""
    MEMBERS = "membership change"
    """An administrator changes who belongs to a group."""
    SPLIT = "cut along majorities"
    """Nothing passes between those who vote in the old configuration of a group and those who vote in the new one."""
    LAST_COPIES = "last copies"
    """A minority is cut off for a moment; then one of those who hold what was acknowledged meanwhile is damaged, and
    their leader ends (RULES W7)."""
    WIPE = "wiped disk"
    """The machine ends, and its disk is empty when it comes back: its replicas are removed and made anew."""


LINK_KINDS = frozenset({FaultKind.CUT, FaultKind.RESET, FaultKind.CLOG})


class Moment(Enum):
    """What an ambush waits for."""

    ELECTION = "its election"
    JOINT = "a joint configuration"
    """Is appended by its leader; nobody else has it yet."""
    FINAL = "the end of a joint configuration"
    """The same, of the configuration that follows it."""


DAMAGE_KINDS = frozenset({FaultKind.FLIP, FaultKind.MISDIRECT, FaultKind.WIPE})
"""At most a minority of each group's voters may be hit by these at any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`leader_of`: the leading node of that group is meant, in addition to `nodes`. `links` are (from, to).
    `for_ms`: after that long it is undone (restarted, resumed, healed)."""

    at_ms: int
    kind: FaultKind
    for_ms: int
    nodes: tuple[NodeId, ...] = ()
    leader_of: GroupId | None = None
    links: tuple[tuple[NodeId, NodeId], ...] = ()
    ambush_ms: int | None = None
    """Lies in wait from `at_ms` on: comes so long after the next `moment` of the group of `leader_of`."""
    moment: Moment = Moment.ELECTION
    amount: int = 0
    """IO calls until a power cut or an error; extra delay in ms of a clogged link or a slow disk; drift in ppm; ms
    of a jump; free bytes of a full disk; anything else that the kind draws from."""

    def describe(self) -> str:
        parts = [self.kind.value]
        if self.nodes:
            parts.append("nodes " + " ".join(map(str, self.nodes)))
        if self.leader_of is not None:
            wait = "" if self.ambush_ms is None else f" {self.ambush_ms} ms after {self.moment.value}"
            parts.append(f"leader of group {self.leader_of}{wait}")
        if self.links:
            parts.append("links " + " ".join(f"{a}>{b}" for a, b in self.links))
        if self.amount:
            parts.append(f"amount {self.amount}")
        return f"{', '.join(parts)}, for {self.for_ms} ms"


def last_end_ms(plan: tuple[Fault, ...]) -> int:
    return max((fault.at_ms + fault.for_ms for fault in plan), default=0)
