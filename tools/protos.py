"""Generate the protobuf and gRPC stubs from proto/, or check that the committed ones are what it gives.

Runs in .venv-protoc (tools/protoc-requirements.txt):

    python tools/protos.py write          write the stubs to where the import path says
    python tools/protos.py check          exit 1 and name the files that differ
"""

import argparse
import ast
import contextlib
import importlib.metadata
import os
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATOR = "1.62.3"  # of grpcio-tools; as in protoc-requirements.txt
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def sources() -> list[Path]:
    found = sorted(path.relative_to(PROTO) for path in PROTO.rglob("*.proto"))
    if not found:
        sys.exit(f"no .proto files under {PROTO}")
    return found


def generate(out: Path) -> None:
    # The plugins of mypy-protobuf lie next to this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    flags = [f"--{kind}_out={out}" for kind in ("python", "grpc_python")]
    # quiet: the plugin announces each file it writes
    flags += [f"--{kind}_out=quiet:{out}" for kind in ("mypy", "mypy_grpc")]
    for source in sources():
        code = protoc.main(["protoc", f"--proto_path={PROTO}", *flags, str(PROTO / source)])
        if code != 0:
            sys.exit(f"protoc failed on {source}")


def committed_stubs() -> set[Path]:
    packages = {source.parent for source in sources()}
    return {
        path.relative_to(ROOT)
        for package in packages
        for path in (ROOT / package).glob("*")
        if path.name.endswith(SUFFIXES)
    }


def descriptor(text: str) -> bytes:
    """The serialized file descriptor inside a _pb2.py."""
    match = re.search(r"AddSerializedFile\((b'(?:[^'\\]|\\.)*')\)", text)
    if match is None:
        raise ValueError("no descriptor in it")
    value = ast.literal_eval(match.group(1))
    assert isinstance(value, bytes)
    return value


def same(committed: Path, fresh: Path, exact: bool) -> bool:
    if exact:
        return committed.read_bytes() == fresh.read_bytes()
    if committed.name.endswith("_pb2.py"):
        return descriptor(committed.read_text()) == descriptor(fresh.read_text())
    return True


def check() -> int:
    exact = importlib.metadata.version("grpcio-tools") == GENERATOR
    with tempfile.TemporaryDirectory() as folder:
        fresh_root = Path(folder)
        generate(fresh_root)
        fresh = {path.relative_to(fresh_root) for path in fresh_root.rglob("*") if path.is_file()}
        committed = committed_stubs()
        problems = [f"{path}: missing" for path in sorted(fresh - committed)]
        problems += [f"{path}: has no source in proto/" for path in sorted(committed - fresh)]
        problems += [
            f"{path}: differs from what proto/ gives"
            for path in sorted(fresh & committed)
            if not same(ROOT / path, fresh_root / path, exact)
        ]
    for problem in problems:
        print(problem)
    if problems:
        print("the stubs are stale: run `make protos` and commit what it writes")
        return 1
    print(f"{len(fresh)} stubs are fresh ({'text' if exact else 'descriptors'} compared)")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument("--any-generator", action="store_true", help="write even with another version of grpcio-tools")
    arguments = parser.parse_args()
    if arguments.action == "check":
        return check()
    if not arguments.any_generator and importlib.metadata.version("grpcio-tools") != GENERATOR:
        sys.exit(f"stubs are written with grpcio-tools {GENERATOR}, which needs Python 3.11 or 3.12")
    for stale in committed_stubs():
        with contextlib.suppress(FileNotFoundError):
            (ROOT / stale).unlink()
    generate(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
