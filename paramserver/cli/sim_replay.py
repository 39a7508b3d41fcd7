"""`paramserver sim replay SEED`: one seed of the simulator again, exactly.

Owns how it is asked for and shown. Invariant: the same seed and flags give the same trace hash.
"""

from __future__ import annotations

import json
from dataclasses import replace

from paramserver.cli import codes, flags
from paramserver.cli.flags import Flag
from paramserver.cli.sim_run import KINDS, NODES_MAX, SEED_MAX

DESCRIPTION = "Run one seed of the simulator again: the same faults, the same events, the same verdict."
EPILOG = "example:\n  paramserver sim replay 17 --trace\n"
FLAGS = (
    Flag("SEED", "the seed", flags.integer(0, SEED_MAX), required=True),
    Flag("--trace", "the last lines of what happened, also when all was well"),
    Flag("--shrink", "if it fails, look for a smaller case that fails alike"),
    Flag("--nodes", "nodes of the cluster; drawn by the seed if not given", flags.integer(1, NODES_MAX)),
    Flag("--kind", "what to simulate: all (the seed decides), " + ", ".join(KINDS[1:]), flags.choice(*KINDS), "all"),
)


def run(values: flags.Values, problems: list[str]) -> int:
    flags.raise_problems(problems, "sim replay")
    from paramserver.lab.simulation import campaign

    kind = "" if values["kind"] == "all" else values["kind"]
    seed, nodes = values["SEED"], values["nodes"]
    case = campaign.draw_case(seed, kind=kind, nodes=nodes)
    if values["trace"]:
        case = replace(case, options=replace(case.options, keep_trace=True))
    report = campaign.run_case(case, kind=kind)
    if values["shrink"] and not report.ok:
        shrunk = campaign.shrink_one(seed, report, kind=kind, nodes=nodes)
        case, report = shrunk.case, shrunk.report
    if report.trace:
        print(report.trace)
        print()
    print(case.describe())
    print(f"\nseed {seed}: {report.failure or 'fine'}")
    shown = {
        "seed": seed,
        "ok": report.ok,
        "failure": report.failure,
        "trace_hash": report.trace_hash,
        "events": report.events,
        "simulated_ms": report.simulated_ms,
        "operations_checked": report.operations_checked,
        "faults": report.faults,
    }
    print(json.dumps(shown))
    return codes.OK if report.ok else codes.CHECK_FAILED
