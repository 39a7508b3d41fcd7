"""The doors between the rooms are shut, and the front door opens no room of the server."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

SERVER = ("consensus", "paramserver.node", "paramserver.rpc", "paramserver.shard", "paramserver.catalogue")
SERVER += ("paramserver.table", "paramserver.optim", "paramserver.observe", "paramserver.lab", "paramserver.cli")


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_contracts_hold() -> None:
    done = run(str(BIN / "lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


# A wrong import for each contract: where it is written, and what is imported there.
WRONG = {
    "consensus imports nothing of ours": ("consensus/runtime", "paramserver.wire"),
    "the core imports nothing of consensus but itself": ("consensus/core/raft", "consensus.v1"),
    "the core has no clock": ("consensus/core/raft", "time"),
    "consensus: simulation, runtime": ("consensus/storage", "consensus.runtime"),
    "paramserver: cli, lab": ("paramserver/shard", "paramserver.rpc"),
    "worker imports of paramserver": ("worker/data", "paramserver.optim"),
    "what both ends share": ("paramserver/wire", "consensus.core"),
    "no part of the server imports worker": ("paramserver/rpc", "worker.data"),
    "only cli uses lab": ("worker/reference", "paramserver.lab"),
    "nothing imports cli": ("paramserver/lab", "paramserver.cli"),
}


@pytest.mark.parametrize("contract", WRONG)
def test_contract_notices_a_wrong_import(contract: str, tmp_path: Path) -> None:
    for package in ("consensus", "paramserver", "worker", "tools"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    folder, module = WRONG[contract]
    (tmp_path / folder / "wrong.py").write_text(f"def late() -> None:\n    import {module}\n")
    done = run(str(BIN / "lint-imports"), "--no-cache", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(contract) and line.endswith("BROKEN")]


def test_every_contract_has_a_wrong_import() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        names = [contract["name"] for contract in tomllib.load(file)["tool"]["importlinter"]["contracts"]]
    assert [name for name in names if not name.startswith(tuple(WRONG))] == []
    assert len(names) == len(WRONG)


def loaded_by(statement: str) -> set[str]:
    done = run(sys.executable, "-c", f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement", ["import worker", "import paramserver", "import paramserver, worker; paramserver.connect"]
)
def test_front_door_loads_no_server_module(statement: str) -> None:
    loaded = loaded_by(statement)
    assert sorted(name for name in loaded if name.startswith(SERVER)) == []


def test_connect_is_the_workers() -> None:
    done = run(sys.executable, "-c", "import paramserver, worker; assert paramserver.connect is worker.connect")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("optional", ["rich", "sklearn", "cupy", "torch", "jax", "psutil"])
def test_extras_are_loaded_only_where_used(optional: str) -> None:
    statement = "import paramserver, worker; paramserver.connect; paramserver.jax; import paramserver.cli"
    assert optional not in loaded_by(statement)
