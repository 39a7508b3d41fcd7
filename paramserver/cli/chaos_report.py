"""`paramserver chaos report`: a stored result of a chaos run as one HTML page.

Owns reading the one and writing the other. Must not know: what is in them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from paramserver.cli import codes, flags
from paramserver.cli.codes import CommandError
from paramserver.cli.flags import Flag

DESCRIPTION = (
    "Make one HTML file of a result of `paramserver chaos run`: tables, throughput over time with the faults in it,\n"
    "and how stalls are distributed. The pictures need matplotlib: pip install 'paramserver[lab]'."
)
EPILOG = "example:\n  paramserver chaos report results/chaos.json --html report.html\n"
FLAGS = (
    Flag("RESULT", "the JSON file of a run", str, required=True),
    Flag("--html", "where to write the page", str, metavar="FILE", required=True),
)


def run(values: flags.Values, problems: list[str]) -> int:
    flags.raise_problems(problems, "chaos report")
    from paramserver.lab.chaos.report.write import write
    from paramserver.lab.chaos.result import ResultError, from_json

    source, target = Path(values["RESULT"]), Path(values["html"])
    try:
        result = from_json(json.loads(source.read_text()))
    except OSError as error:
        raise CommandError(f"{source}: {error.strerror}", "give the chaos.json of a run", code=codes.USAGE) from None
    except (ResultError, ValueError) as error:
        hint = "give the chaos.json that `paramserver chaos run --out FOLDER` of this version wrote"
        raise CommandError(f"{source}: not a result of a chaos run: {error}", hint, code=codes.USAGE) from None
    try:
        missing = write(result, target)
    except OSError as error:
        raise CommandError(f"{target}: {error.strerror}", "name a file that can be written", code=codes.USAGE) from None
    if missing:
        print(missing, file=sys.stderr)
    print(target)
    return codes.OK
