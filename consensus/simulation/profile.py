"""How good or bad the surroundings are: speeds of network, disk and threads, chances of loss.

Owns `Profile` and the drawing of one from a seed. Invariant: a profile is a value; healing swaps it for a calm one.
Must not know: who uses it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from consensus.simulation.schedule import MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Pairs are (least, most), both possible, in microseconds; permille are chances of 0..1000."""

    ordered: bool = True
    """Like streams: per channel in order, lost only with the connection. Otherwise each message for itself."""
    delay_us: tuple[int, int] = (100, 1000)
    """From one node to another."""
    late_permille: int = 0
    late_us: tuple[int, int] = (20 * MS, 200 * MS)
    """Extra delay of a late message."""
    loss_permille: int = 0
    """Not used when `ordered`."""
    duplicate_permille: int = 0
    """Not used when `ordered`."""
    client_loss_permille: int = 0
    """Of requests and answers between clients and nodes."""
    write_us: tuple[int, int] = (20, 200)
    sync_us: tuple[int, int] = (100, 2000)
    slow_sync_permille: int = 0
    slow_sync_us: tuple[int, int] = (50 * MS, 500 * MS)
    work_us: tuple[int, int] = (10, 300)
    """A piece of work on a lane."""
    post_us: tuple[int, int] = (1, 50)
    """From a thread back to the host's."""
    drift_ppm_max: int = 0
    """Clocks run up to this much too fast or too slow."""
    codec: bool = False
    """Every message is encoded and parsed again."""

    def calm(self) -> Profile:
        """The same cluster after healing: nothing is lost, late or slow any more."""
        return replace(
            self,
            delay_us=(min(self.delay_us[0], 500), min(self.delay_us[1], 2 * MS)),
            late_permille=0,
            loss_permille=0,
            duplicate_permille=0,
            client_loss_permille=0,
            slow_sync_permille=0,
        )


def draw_profile(source: random.Random) -> Profile:
    """One of the surroundings that FAULTS rows 13-15 speak of, or a fine one."""
    ordered = source.random() < 0.5
    kind = source.choice(("lan", "lan", "slow", "lossy", "wild"))
    profile = Profile(
        ordered=ordered,
        codec=source.random() < 0.4,
        drift_ppm_max=source.choice((0, 0, 500, 20_000)),
        slow_sync_permille=source.choice((0, 0, 5, 30)),
        client_loss_permille=source.choice((0, 10, 50)),
        sync_us=source.choice(((50, 300), (100, 2000), (2 * MS, 12 * MS), (5 * MS, 40 * MS))),
    )
    if kind == "slow":
        return replace(profile, delay_us=(2 * MS, 20 * MS), late_permille=10)
    if kind == "lossy":
        return replace(profile, loss_permille=source.choice((20, 100, 300)), duplicate_permille=50, late_permille=20)
    if kind == "wild":
        return replace(
            profile,
            delay_us=(500, 60 * MS),
            late_permille=30,
            late_us=(50 * MS, 5000 * MS),
            loss_permille=source.choice((0, 50, 300)),
            duplicate_permille=source.choice((0, 200, 500)),
        )
    return profile


def between(source: random.Random, span: tuple[int, int]) -> int:
    return source.randrange(span[0], span[1] + 1)
