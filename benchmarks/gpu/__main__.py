"""What the way between a GPU and host memory costs, and whether it gives the bits of NumPy.

    python -m benchmarks.gpu --out benchmarks/results/gpu.json

Checks come first: kernels and copies on this device against NumPy, bit by bit; a difference ends the run with 1. Then
times, by events of the device: gathering tensors into one flat buffer, the codecs, copies to and from page-locked
memory (against one large copy of the same run), how much of the way out the backward pass hides, and training of the
CNN on three servers on this machine. Needs CuPy and a CUDA device (pip install 'paramserver[gpu]').

`--stand-in` runs all of this on NumPy in place of CuPy: it shows that the code runs, and measures nothing; times in its
result are null.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.common import machine, results
from benchmarks.gpu import checks, rates, training
from benchmarks.gpu.report import blanked, judged
from worker import device as devices
from worker.errors import InvalidArgument

PARTS = ("checks", "gather", "codecs", "copies", "overlap", "training")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repetitions")
    parser.add_argument("--stand-in", action="store_true", help="on NumPy: measures nothing")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    try:
        with _device(options.stand_in) as device:
            found = run(device, options)
    except InvalidArgument as error:
        print(f"benchmarks.gpu: {error}; --stand-in shows that the code runs", file=sys.stderr)
        return 2
    results.write(found, options.out)
    return 0 if all(one["equal"] for one in found.get("checks", ())) else 1


@contextmanager
def _device(stand_in: bool) -> Iterator[devices.Device]:
    if not stand_in:
        yield devices.get("cupy")
        return
    from tests.unit.device.standin import installed

    with installed():
        yield devices.get("cupy")


def run(device: devices.Device, options: argparse.Namespace, servers: training.Servers = training.servers) -> Any:
    found: dict[str, Any] = {
        "benchmark": "gpu",
        "command": machine.command("gpu"),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "device": rates.described(device),
        "measured": not options.stand_in,
    }
    if options.stand_in:
        found["note"] = "NumPy stood in for CuPy: nothing was measured"
    if "checks" in options.parts:
        found["checks"] = checks.all_of(device)
    if any(part in options.parts for part in ("gather", "codecs", "copies", "overlap")):
        bench = rates.Rates(device, quick=options.quick)
        for part in ("gather", "codecs", "copies", "overlap"):
            if part in options.parts:
                found[part] = getattr(bench, part)()
    if "training" in options.parts:
        found["training"] = training.rows(device, servers, quick=options.quick)
    if options.stand_in:
        found = blanked(found)
    found["targets"] = judged(found)
    return found


if __name__ == "__main__":
    sys.exit(main())
