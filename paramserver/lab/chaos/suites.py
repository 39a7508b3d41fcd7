"""The built-in suites.

`slice`: in every run of the tests, 45 s, also on a machine that is busy with others. `quick`: each kind once, three
minutes on two cores. `full`: each kind many times, more than 500 faults. `soak`: everything on one cluster, for as long
as one likes.
"""

from __future__ import annotations

from collections.abc import Mapping

from paramserver.lab.chaos.plan import Entry, Plan

EVERY_KIND = (
    "kill_leader",
    "kill_follower",
    "kill_majority",
    "kill_all",
    "kill_worker",
    "kill_catalogue_leader",
    "pause_leader",
    "pause_worker",
    "partition_leader",
    "partition_one_way",
    "partition_bridge",
    "clog_links",
    "black_hole",
    "loss",
    "delay",
    "duplicate",
    "rate_limit",
    "slow_disk",
    "full_disk",
    "fsync_error",
    "bitflip_wal",
    "bitflip_snapshot",
    "wipe_disk",
    "transfer_storm",
    "membership_churn",
    "replace_node",
    "rolling_restart",
    "rolling_upgrade",
    "overload",
    "clock_jump",
    "stall_leader",
)
KILL_LEADERS = 50
REPETITIONS = 17
SLICE = ("kill_leader", "kill_worker", "pause_leader", "transfer_storm")

SUITES: Mapping[str, Plan] = {
    "slice": Plan(
        name="slice",
        margin=3,
        rest_s=(0.3, 0.5),
        baseline_s=1.0,
        hang_s=60.0,
        faults=tuple(Entry(kind=kind) for kind in SLICE),
    ),
    "quick": Plan(
        name="quick",
        margin=4,
        rest_s=(0.4, 0.6),
        baseline_s=2.0,
        faults=tuple(Entry(kind=kind) for kind in EVERY_KIND),
    ),
    "full": Plan(
        name="full",
        margin=10,
        rest_s=(0.8, 1.5),
        baseline_s=5.0,
        faults=tuple(
            Entry(kind=kind, repetitions=KILL_LEADERS if kind == "kill_leader" else REPETITIONS) for kind in EVERY_KIND
        ),
    ),
    "soak": Plan(
        name="soak",
        margin=5,
        rest_s=(0.8, 2.0),
        baseline_s=5.0,
        together=True,
        faults=tuple(Entry(kind=kind) for kind in EVERY_KIND),
    ),
}
