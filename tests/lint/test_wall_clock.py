"""Nothing reads the wall clock, so its jumps change nothing but the time stamps of log lines (FAULTS 18): times are
differences of a monotonic clock that is passed in, and leases end by command."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WALL = {
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "localtime"),
    ("time", "gmtime"),
    ("time", "ctime"),
    ("time", "asctime"),
    ("time", "strftime"),
    ("time", "clock_gettime"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
}

ALLOWED = {
    "paramserver/injection/clock.py": "makes the clock jump, in servers started for that",
    "paramserver/lab/chaos/run.py": "dates a result",
}


def reads(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and any((node.module, one.name) in WALL for one in node.names):
            found.append(f"line {node.lineno}: from {node.module} import ...")
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if (owner, node.attr) in WALL:
                found.append(f"line {node.lineno}: {owner}.{node.attr}")
    return found


def test_nothing_reads_the_wall_clock() -> None:
    paths = [path for room in ("consensus", "paramserver", "worker") for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(paths) > 150
    readers = {str(path.relative_to(ROOT)) for path in paths if reads(path.read_text())}
    assert readers == set(ALLOWED)


def test_a_reader_is_noticed() -> None:
    assert reads("import time\nx = time.time()")
    assert reads("from time import time_ns")
    assert reads("import datetime\nx = datetime.datetime.now()")
    assert not reads("import time\nx = time.monotonic()")
