"""The committed stubs are what proto/ gives, and they work."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_stubs_are_fresh() -> None:
    generator = ROOT / ".venv-protoc" / "bin" / "python"
    assert generator.exists(), "run `make test` or `make protos`: they set up what generates stubs"
    done = run(str(generator), "tools/protos.py", "check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_stale_stubs_are_noticed(tmp_path: Path) -> None:
    generator = ROOT / ".venv-protoc" / "bin" / "python"
    copy = tmp_path / "tools" / "protos.py"
    copy.parent.mkdir()
    copy.write_text((ROOT / "tools" / "protos.py").read_text())
    (tmp_path / "proto" / "a" / "v1").mkdir(parents=True)
    source = tmp_path / "proto" / "a" / "v1" / "a.proto"
    source.write_text('syntax = "proto3";\npackage a.v1;\nmessage A { bytes name = 1; }\n')
    assert run(str(generator), str(copy), "write", "--any-generator").returncode == 0
    assert run(str(generator), str(copy), "check").returncode == 0
    source.write_text(source.read_text().replace("name = 1", "name = 2"))
    done = run(str(generator), str(copy), "check")
    assert done.returncode == 1
    assert "a/v1/a_pb2.py: differs" in done.stdout
    source.rename(source.with_name("b.proto"))
    done = run(str(generator), str(copy), "check")
    assert done.returncode == 1
    assert "a/v1/a_pb2.py: has no source" in done.stdout
    assert "a/v1/b_pb2.py: missing" in done.stdout


def test_stubs_round_trip() -> None:
    done = run(sys.executable, "tools/stub_range.py")
    assert done.returncode == 0, done.stdout + done.stderr
