"""The bundled training on a device: on the stand-in it ends with the bits of NumPy, and when a device fails it sends
no part of a step."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from paramserver.wire.codecs import Codec
from paramserver.wire.spec import Sgd
from tests.unit.device.helpers import device_of
from tests.unit.device.standin.world import CUDARuntimeError
from tests.unit.worker.fake import FakeCluster, FakeNetwork
from worker import errors
from worker.client import connect
from worker.reference import train as loop
from worker.reference.config import TrainConfig
from worker.reference.events import Connected, Event
from worker.reference.train import TrainResult, train

STEPS = 6


class Run:
    """On a fake cluster of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster = FakeCluster()
        self.folder = folder
        monkeypatch.setattr(loop, "keep_memory", lambda: "")
        monkeypatch.setattr(loop, "connect", self._connect)

    def _connect(self, servers: str, **options: Any) -> Any:
        network: Any = functools.partial(FakeNetwork, self.cluster)
        return connect(list(self.cluster.addresses.values()), network=network, **options)

    def train(self, device: str, **options: Any) -> tuple[TrainResult, list[Event]]:
        events: list[Event] = []
        given = {"steps": STEPS, "optimizer": Sgd(0.3), "batch": 16, "evaluate_every": 3, **options}
        path = self.folder / f"{device}.session"
        config = TrainConfig(servers="127.0.0.1:1", session_file=path, device=device, **given)
        return train(config, events.append), events


@pytest.mark.parametrize(
    "options",
    [
        {"network": "mlp", "codec": Codec.BF16, "weights_codec": Codec.FP16},
        {"network": "cnn", "codec": Codec.FP16},
        {"network": "mlp", "precision": "mixed", "codec": Codec.BF16},
    ],
    ids=["mlp", "cnn", "mixed"],
)
def test_training_on_the_stand_in_ends_with_the_bits_of_numpy(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = Run(tmp_path, monkeypatch).train("numpy", **options)
    with device_of("cupy") as (_, world):
        linked, events = Run(tmp_path, monkeypatch).train("auto", **options)
        assert world.counts["launch gather"] >= STEPS
    assert linked.digest == plain.digest
    assert linked.evaluation == plain.evaluation
    (connected,) = [event for event in events if isinstance(event, Connected)]
    assert (connected.device, connected.hardware) == ("cupy", "stand-in")
    assert plain.bit_identical_claimed
    assert not linked.bit_identical_claimed


def test_a_step_for_which_memory_ran_out_is_computed_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 32."""
    plain, _ = Run(tmp_path, monkeypatch).train("numpy")
    run = Run(tmp_path, monkeypatch)
    with device_of("cupy") as (_, world):
        monkeypatch.setattr(loop.Link, "pull", _failing_after_pull(world, times=1))
        linked, _ = run.train("cupy")
        assert world.counts["free_all_blocks"] == 2
    assert linked.digest == plain.digest


def test_memory_that_runs_out_twice_ends_the_run_with_nothing_of_the_step_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 32; started again it takes up that step."""
    plain, _ = Run(tmp_path, monkeypatch).train("numpy")
    run = Run(tmp_path, monkeypatch)
    with device_of("cupy") as (_, world), monkeypatch.context() as patch:
        patch.setattr(loop.Link, "pull", _failing_after_pull(world, times=2))
        with pytest.raises(errors.DeviceOutOfMemory, match="computing a gradient"):
            run.train("cupy")
    assert run.cluster.applied == []
    with device_of("cupy"):
        assert run.train("cupy")[0].digest == plain.digest


def test_a_device_that_is_lost_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = Run(tmp_path, monkeypatch).train("numpy")
    run = Run(tmp_path, monkeypatch)
    with device_of("cupy") as (_, world):
        world.fail("execute gather", CUDARuntimeError(719), after=2)
        with pytest.raises(errors.DeviceFailed, match="719"):
            run.train("cupy")
    assert {version for _, version in run.cluster.applied} == {1, 2}
    with device_of("cupy"):
        assert run.train("cupy")[0].digest == plain.digest


def _failing_after_pull(world: Any, times: int) -> Any:
    """From then on so many computations of a gradient find no memory, in the middle of them."""
    plain = loop.Link.pull

    def pull(self: Any, **options: Any) -> Any:
        made = plain(self, **options)
        for number in range(times):
            world.fail("malloc", CUDARuntimeError(2), after=10 + 11 * number)
        return made

    return pull
