"""How processes that push are made to take turns: a gate that says how many steps they may take, and a record a rank.

The measuring process grants steps and waits until every rank has recorded them; so systems that run side by side are
measured in turn, and a machine that gets slower meanwhile gets slower for all. Owns both files. Invariants: ranks of a
system always take the same number of steps; a record is one write, so it is there whole or not at all. Standard library
only: peers use it too. Must not know: systems.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.0005
LONG_POLL_S = 0.02
"""After so many short ones: who waits for its turn takes nothing from whoever has it."""
SHORT_POLLS = 200
_COUNT = struct.Struct("<Q")
_RECORD = struct.Struct("<dd")


class Gate:
    """Steps granted so far, in a file of eight bytes that both sides map."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_COUNT.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _COUNT.size)

    @property
    def granted(self) -> int:
        count: int = _COUNT.unpack_from(self._map)[0]
        return count

    def grant(self, steps: int) -> int:
        """So many more; returns how many there are now."""
        _COUNT.pack_into(self._map, 0, self.granted + steps)
        return self.granted


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of CLOCK_MONOTONIC, one clock for all processes of a machine."""

    begin_s: float
    end_s: float


class Pace:
    """Of one rank: `for step in pace.steps(): push_pull()`."""

    def __init__(self, gate: Path, record: Path) -> None:
        self._gate = Gate(gate)
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def steps(self) -> Iterator[int]:
        """Without end: the measuring process ends this one."""
        number = 0
        while True:
            polls = 0
            while self._gate.granted <= number:
                time.sleep(POLL_S if polls < SHORT_POLLS else LONG_POLL_S)
                polls += 1
            begin_s = time.monotonic()
            yield number
            os.write(self._record, _RECORD.pack(begin_s, time.monotonic()))
            number += 1


def taken(record: Path) -> int:
    """Steps that the rank has recorded."""
    try:
        return record.stat().st_size // _RECORD.size
    except FileNotFoundError:
        return 0


def read(record: Path, first: int, count: int) -> list[Step]:
    with record.open("rb") as file:
        file.seek(first * _RECORD.size)
        data = file.read(count * _RECORD.size)
    return [Step(*one) for one in _RECORD.iter_unpack(data)]
