"""One process that pulls the whole model when its gate lets it: `-m benchmarks.pushpull.reader`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import paramserver
from benchmarks.pushpull.load import MODEL, TIMEOUT_S
from benchmarks.pushpull.pacing import Pace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--policy", default="")
    parser.add_argument("--gate", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    more: dict[str, Any] = {"pull_policy": options.policy} if options.policy else {}
    pace = Pace(options.gate, options.record)
    with paramserver.connect(options.servers, timeout=TIMEOUT_S, **more) as client:
        model = client.model(MODEL)
        weights = model.pull(version=options.version)
        for _ in pace.steps():
            model.pull(version=options.version, out=weights)


if __name__ == "__main__":
    main()
