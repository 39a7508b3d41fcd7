"""Kinds that have their names, and wait for what they strike."""

from __future__ import annotations

from paramserver.lab.chaos.kinds import absent

SEAMS = "servers whose disk and clock can be made to fail are not there yet"

for name, rows in (
    ("slow_disk", (11,)),
    ("full_disk", (10,)),
    ("fsync_error", (9,)),
    ("clock_jump", (18,)),
):
    absent(name, rows=rows, why_not=SEAMS)
