"""Ten thousand small tensors against one of the same bytes: what names and shapes cost.

Once with gradients in the model's own `buffer()`, once as a dictionary of arrays of the caller's (which are copied
together first). The ratio is of times: 1 is free.
"""

from __future__ import annotations

import argparse

from benchmarks.pushpull import rows
from benchmarks.pushpull.case import Case
from benchmarks.pushpull.comparing import Found, side_by_side
from benchmarks.pushpull.ours import OurOptions, Ours
from benchmarks.pushpull.turns import Effort

TENSORS = 10_000
MODEL_MB = 40


def run(options: argparse.Namespace, effort: Effort) -> Found:
    found = Found()
    tensors, model_mb = (100, 1) if options.quick else (TENSORS, MODEL_MB)
    case = Case(model_mb=model_mb, workers=1)
    for arrays, name in ((True, "arrays"),) if options.quick else ((False, "buffer"), (True, "arrays")):
        many = OurOptions(replicas=options.replicas, tensors=tensors, arrays=arrays)
        single = OurOptions(replicas=options.replicas, arrays=arrays)
        ours, others = side_by_side(
            lambda many=many: Ours(case, many),  # type: ignore[misc]
            {"one tensor": lambda single=single: Ours(case, single)},  # type: ignore[misc]
            effort,
            found,
            f"tensors {name}",
        )
        if ours is None:
            break
        found.add_row(rows.row(ours, tensors=tensors, gradient=name))
        for one in others:
            found.add_row(rows.row(one, tensors=1, gradient=name))
            slower = rows.ratio(one, ours)
            if slower is not None:
                found.ratios[f"time_tensors{tensors}_vs_1_{name}"] = slower
    return found
