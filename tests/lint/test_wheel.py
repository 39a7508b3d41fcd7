"""The wheel ships the three packages, typed, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("consensus", "paramserver", "worker")


def test_wheel_contents(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        commands = archive.read(entry_points).decode()
    info = entry_points.split("/")[0]
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}
    assert [
        name for name in names if name.split("/")[0] in PACKAGES and not name.endswith((".py", ".pyi", ".typed"))
    ] == []
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.startswith(f"{info}/") and name.endswith("LICENSE") for name in names)
    assert "paramserver = paramserver.cli:main" in commands
    shipped = {name for name in names if name.split("/")[0] in PACKAGES}
    there = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py*")
        if path.suffix in (".py", ".pyi", ".typed")
    }
    assert there - shipped == set()
