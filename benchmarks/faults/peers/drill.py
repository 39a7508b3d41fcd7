"""One episode: a peer works, is struck, and is watched until it goes on or is known not to.

Owns the order of things and the clock. Invariants: workers count before the fault, or the episode is invalid and says
so; a hang is named as such only after HANG_S without a sign of a worker that runs. Must not know: what a peer is.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterable
from typing import Any

from benchmarks.faults.peers import judge
from benchmarks.faults.peers.judge import Watched
from benchmarks.faults.peers.ledger import CHECKPOINT_EVERY
from benchmarks.faults.peers.system import KILL_WORKER, PAUSE_SERVER, Peer, Supervised

HANG_S = 30.0
PAUSE_S = 5.0
BACK_S = 1.0
"""After this a killed worker is started again."""
SETTLE_S = 2.0
"""After the last thing that was done, for what comes late."""
STEPS_AFTER = 30
POLL_S = 0.05
START_S_MAX = 60.0
STOP_S_MAX = 15.0


def episode(kind: type[Peer], fault: str, seed: int) -> dict[str, Any]:
    """The row of one run."""
    draw = random.Random(seed)
    steps = kind.steps_before + draw.randrange(CHECKPOINT_EVERY)
    with kind() as peer:
        peer.wait(lambda: all(one.pushed("step") >= steps for one in peer.records()), f"step {steps}", START_S_MAX)
        pid = peer.worker_pid() if fault == KILL_WORKER else peer.server_pid()
        at_s = strike(peer, fault, pid)
        healed_s = heal(peer, fault, pid)
        restarted = watch(peer, healed_s)
        goes_on = gone_on(peer.records(), healed_s)
        if goes_on:
            time.sleep(max(0.0, healed_s + SETTLE_S - time.monotonic()))
            stop(peer)
        found = peer.records()
    return row(kind, fault, seed, found, at_s, goes_on=goes_on, restarted=restarted)


def strike(peer: Peer, fault: str, pid: int) -> float:
    at_s = time.monotonic()
    os.kill(pid, signal.SIGSTOP if fault == PAUSE_SERVER else signal.SIGKILL)
    peer.struck = {rank for rank, child in peer.workers.items() if child.pid == pid}
    return at_s


def heal(peer: Peer, fault: str, pid: int) -> float:
    """What happens without anybody's decision: a paused process goes on, a killed worker is started again (also one
    that lives in a server). A killed server is left dead."""
    if fault == PAUSE_SERVER:
        time.sleep(PAUSE_S)
        os.kill(pid, signal.SIGCONT)
    elif peer.struck and not isinstance(peer, Supervised):
        time.sleep(BACK_S)
        for rank in peer.struck:
            peer.workers[rank].start()
    return time.monotonic()


def watch(peer: Peer, healed_s: float) -> bool:
    """Until all go on, or each has ended or is silent; whether the job was started again."""
    restarted = False
    while not gone_on(peer.records(), healed_s):
        if isinstance(peer, Supervised) and not restarted and any(not child.running for child in peer.children):
            peer.restart()
            restarted, healed_s = True, time.monotonic()
        since_s = time.monotonic() - HANG_S
        alive = [one for one in peer.records() if peer.workers[one.ranks[0]].running]
        if all(max(healed_s, one.last_sign_s) < since_s for one in alive):
            break
        time.sleep(POLL_S)
    return restarted


def gone_on(records: Iterable[Watched], since_s: float) -> bool:
    return all(one.steps_after(since_s) >= STEPS_AFTER and one.caught_up for one in records)


def stop(peer: Peer) -> None:
    """Have them say what they hold."""
    peer.stop_file.touch()
    deadline_s = time.monotonic() + STOP_S_MAX
    while time.monotonic() < deadline_s and not all(one.final for one in peer.records()):
        time.sleep(POLL_S)


def row(
    kind: type[Peer], fault: str, seed: int, found: list[Watched], at_s: float, *, goes_on: bool, restarted: bool
) -> dict[str, Any]:
    errors = judge.errors(found, at_s)
    seen = judge.ENDED if restarted else judge.ERROR if errors else judge.NOTHING if goes_on else judge.HANG
    counted = judge.counted(found)
    stalled = judge.stall_ms(found, at_s) if goes_on else None
    return {
        "peer": kind.name,
        "fault": fault,
        "seed": seed,
        "steps_before": min(one.pushed("step") - one.steps_after(at_s) for one in found),
        "seen": seen,
        "what": errors[0][1] if errors and not restarted else None,
        "after_ms": round(errors[0][0] * 1000, 1) if errors and not restarted else None,
        "goes_on": goes_on and not restarted,
        "restarted": restarted,
        "stall_ms": None if stalled is None else round(stalled, 1),
        **counted,
        "steps_redone": redone(found, at_s) if restarted else None,
    }


def redone(found: Iterable[Watched], at_s: float) -> int:
    """Steps that were acknowledged before the fault and made again after it."""
    before: set[int] = set()
    after: set[int] = set()
    for worker in found:
        for line in worker.lines:
            if line["event"] == "step":
                (before if line["time"] < at_s else after).add(line["step"])
    return len(before & after)
