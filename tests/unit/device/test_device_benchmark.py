"""The benchmark of a GPU runs, on the stand-in, with no word about how fast."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, report, training
from tests.unit.device.helpers import device_of
from tests.unit.worker import fake
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import client_of
from worker.client import Client


@contextmanager
def fake_servers() -> Iterator[Client]:
    with client_of(FakeCluster()) as client:
        yield client


def numbers(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        for key, value in found.items():
            if isinstance(value, float):
                yield key
            yield from numbers(value)
    elif isinstance(found, list):
        for one in found:
            yield from numbers(one)


def test_all_of_it_runs_on_the_stand_in_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CODECS", ("bf16",))
    monkeypatch.setattr(fake, "LEARNING_RATE", np.float32(1e-4))
    with device_of("cupy") as (device, _):
        options = command.parsed(["--stand-in", "--quick"])
        found = json.loads(json.dumps(command.run(device, options, fake_servers)))
    assert [row["check"] for row in found["checks"] if not row["equal"]] == []
    assert len(found["checks"]) == 9
    assert [row["tensors"] for row in found["gather"]] == [1, 100, 1000]
    assert [row["kernel"] for row in found["codecs"]["rows"]] == [
        f"{way}_{codec}" for codec in ("bf16", "fp16") for way in ("encode", "decode")
    ]
    assert found["measured"] is False
    assert set(numbers({part: found[part] for part in command.PARTS})) == set()
    assert [target["met"] for target in found["targets"]] == [None] * 3


def test_figures_are_judged_by_the_memorys_own_bandwidth_where_it_is_known() -> None:
    rows = [{"kernel": "encode_bf16", "gb_per_s": 700.0}, {"kernel": "decode_bf16", "gb_per_s": 1.0}]
    found = {
        "device": {"memory_gb_per_s_by_its_clock": 1000.0},
        "codecs": {"copy_within_the_device_gb_per_s": 800.0, "rows": rows},
        "copies": {"share_out": 0.9, "share_in": 0.7},
    }
    assert [(one["value"], one["met"]) for one in report.judged(found)] == [(0.7, True), (0.9, True), (0.7, False)]
    found["device"]["memory_gb_per_s_by_its_clock"] = None
    assert report.judged(found)[0]["value"] == 0.875


def test_a_check_sees_a_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    with device_of("cupy") as (device, _):
        plain = checks.encode
        monkeypatch.setattr(checks, "encode", lambda *given: bytes(plain(*given))[:-2] + b"\x01\x02")
        wrong = [row["check"] for row in checks.all_of(device) if not row["equal"]]
    assert wrong == [
        "encode BF16",
        "encode FP16",
        *(f"gradient and weights in {name}" for name in ("FP32", "BF16", "FP16")),
    ]


def test_without_a_gpu_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it was not installed
    out = tmp_path / "gpu.json"
    assert command.main(["--out", str(out)]) == 2
    assert "--stand-in" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(SystemExit):
        command.parsed(["--parts", "nothing"])


def test_its_command_writes_a_result(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert command.main(["--stand-in", "--quick", "--parts", "checks", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["note"] == "NumPy stood in for CuPy: nothing was measured"
