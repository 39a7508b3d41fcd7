"""The command starts lightly: what it loads is measured, not how long that takes."""

import json
import subprocess
import sys

import pytest

HEAVY = ("grpc", "numpy", "google.protobuf", "rich", "sklearn", "consensus", "worker", "paramserver.lab")
HEAVY += ("paramserver.wire", "paramserver.v1", "paramserver.node", "asyncio", "xxhash", "crc32c", "psutil")


def loaded_by(*words: str) -> set[str]:
    code = f"import sys, json\nfrom paramserver.cli import main\ncode = main({list(words)!r})\n"
    code += "print(json.dumps(sorted(sys.modules)), file=sys.__stderr__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("server", "--help"),
        ("launch", "--help"),
        ("worker", "--help"),
        ("status", "--help"),
        ("demo", "--help"),
    ],
)
def test_help_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    loaded = loaded_by(*words)
    assert sorted(name for name in loaded for heavy in HEAVY if name == heavy or name.startswith(heavy + ".")) == []


def test_importing_the_command_loads_little() -> None:
    code = "import sys, paramserver.cli; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    bare = subprocess.run(
        [sys.executable, "-c", "import sys, collections.abc, typing; print(len(sys.modules))"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert int(done.stdout) - int(bare.stdout) < 10
