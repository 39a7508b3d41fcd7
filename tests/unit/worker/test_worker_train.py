"""The reference training loop on the fake cluster (which applies plain SGD, whatever the spec says)."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramserver.wire.spec import Adam, Momentum, Sgd
from tests.unit.worker.fake import FakeCluster, FakeNetwork
from tests.unit.worker.idx_files import write
from worker import errors
from worker.client import connect
from worker.data.augment import Augmentation
from worker.reference import train as loop
from worker.reference.config import TrainConfig, parse_optimizer
from worker.reference.events import Connected, DataLoaded, Ended, Event, Resumed, Started, StepDone, Waiting
from worker.reference.mlp import Mlp
from worker.reference.train import TrainResult, train


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()

    def on_fake(servers: str, **options: Any) -> Any:
        network: Any = functools.partial(FakeNetwork, fake)
        return connect(list(fake.addresses.values()), network=network, **options)

    monkeypatch.setattr(loop, "connect", on_fake)
    monkeypatch.setattr(loop, "keep_memory", lambda: "")
    monkeypatch.setattr(loop, "REPORT_S", 0.1)
    monkeypatch.setattr(loop, "ATTEMPT_S", 0.3)
    return fake


def config(folder: Path, **options: Any) -> TrainConfig:
    given = {"steps": 60, "device": "numpy", "optimizer": Sgd(0.5), "evaluate_every": 20, **options}
    rank = given.get("rank", 0)
    return TrainConfig(servers="127.0.0.1:1", session_file=folder / f"{rank}.session", **given)


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_two_ranks_learn_and_end_with_the_same_bits(cluster: FakeCluster, tmp_path: Path) -> None:
    results: dict[int, TrainResult] = {}
    events: dict[int, list[Event]] = {0: [], 1: []}

    def run(rank: int) -> None:
        results[rank] = train(config(tmp_path, rank=rank, ranks=2), events[rank].append)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[0].digest == results[1].digest
    assert results[0].accuracy > 0.85
    steps = of(StepDone, events[0])
    assert [event.step for event in steps] == list(range(60))
    assert [event.step for event in steps if event.accuracy is not None] == [19, 39, 59]
    assert sorted(event.time_s for event in steps) == [event.time_s for event in steps]
    assert [type(event) for event in events[0][:3]] == [DataLoaded, Connected, Started]
    assert events[0][-1] == Ended(events[0][-1].time_s, 60, results[0].evaluation, results[0].digest, True)


def test_a_rank_that_was_killed_goes_on_where_it_was_and_ends_with_the_same_bits(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    """RULES S7."""
    whole = train(config(tmp_path, model_name="whole", steps=40))

    class Killed(BaseException):
        pass

    def kill(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 20:
            raise Killed

    with pytest.raises(Killed):
        train(config(tmp_path, model_name="broken", steps=40), kill)
    events: list[Event] = []
    result = train(config(tmp_path, model_name="broken", steps=40), events.append)
    assert of(Started, events)[0].first_step == result.first_step == 21
    assert [event.step for event in of(StepDone, events)] == list(range(21, 40))
    assert result.digest == whole.digest
    finished = train(config(tmp_path, model_name="broken", steps=40))
    assert (finished.first_step, finished.digest) == (40, whole.digest)


def test_it_says_why_it_waits_and_goes_on(cluster: FakeCluster, tmp_path: Path) -> None:
    events: list[Event] = []

    def outage(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == 5:
            cluster.kill(2)
            cluster.kill(3)
        if isinstance(event, Waiting) and "have no leader" in event.why and 2 in cluster.down:
            for node in (2, 3):
                cluster.restart(node)
            for group in (2, 3):
                cluster.elect(group, group)

    result = train(config(tmp_path, steps=12), outage)
    assert result.step == 12
    # The first one may be from before the step was begun, where the machine is busy.
    waiting = next(event for event in of(Waiting, events) if "have no leader" in event.why)
    assert waiting.step == 6
    assert "groups 2, 3 have no leader" in waiting.why
    assert "nodes 2, 3 unreachable" in waiting.why
    assert of(Resumed, events)[0].step == 6


def test_it_names_the_ranks_that_nobody_holds(cluster: FakeCluster, tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(errors.DeadlineExceeded):
        train(config(tmp_path, ranks=3, patience_s=0.4), events.append)
    assert any("ranks 1, 2 not held by any worker" in event.why for event in of(Waiting, events))


def test_a_cnn_in_mixed_precision_is_trained_the_same_way(cluster: FakeCluster, tmp_path: Path) -> None:
    """Killed in the middle: neither its batches nor its loss scale have to be kept."""
    of_cnn = {"network": "cnn", "precision": "mixed", "batch": 8, "steps": 5}
    events: dict[str, list[Event]] = {"whole": [], "broken": [], "plain": []}
    whole = train(config(tmp_path, model_name="whole", **of_cnn), events["whole"].append)

    class Killed(BaseException):
        pass

    def kill(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            raise Killed

    with pytest.raises(Killed):
        train(config(tmp_path, model_name="broken", **of_cnn), kill)
    result = train(config(tmp_path, model_name="broken", **of_cnn), events["broken"].append)
    assert (result.first_step, result.digest) == (3, whole.digest)
    assert result.bit_identical_claimed
    plain = train(config(tmp_path, model_name="plain", **{**of_cnn, "precision": "fp32"}), events["plain"].append)
    assert plain.digest != whole.digest
    first = [of(StepDone, events[name])[0].loss for name in ("plain", "whole")]
    assert first[0] == pytest.approx(first[1], rel=0.01)
    assert len(result.evaluation.classes) == 10
    assert not [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_a_folder_of_files_is_trained_on_without_its_bad_row(cluster: FakeCluster, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 28, 28), np.uint8)
    labels = np.arange(30, dtype=np.uint8) % 3
    labels[7] = 9
    write(tmp_path, pixels, labels, held_out=6)
    events: list[Event] = []
    of_files = {"network": "cnn", "data": str(tmp_path), "classes": 3, "batch": 4, "steps": 3}
    assert config(tmp_path, **of_files).spec().parameters == 110_474 - 7 * 129
    with pytest.raises(errors.InvalidArgument, match="1 row with a label outside 0 to 2: 7"):
        train(config(tmp_path, **of_files))
    result = train(config(tmp_path, bad_rows="skip", **of_files), events.append)
    assert (result.step, len(result.evaluation.classes)) == (3, 3)
    [loaded] = of(DataLoaded, events)
    assert (loaded.training, loaded.held_out, loaded.image) == (29, 6, (28, 28))
    assert loaded.bad_rows == ("train-labels-idx1-ubyte: 1 row with a label outside 0 to 2: 7",)


def test_a_step_that_float16_cannot_hold_is_skipped(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES S10: version + 1, weights as they were."""
    plain = Mlp.loss_and_gradient

    def too_large(self: Mlp, weights: Any, images: Any, labels: Any, scale: float = 1.0) -> Any:
        loss, gradient = plain(self, weights, images, labels, scale)
        gradient["layer0.bias"][3] = float("inf")
        return loss, gradient

    before = train(config(tmp_path, precision="mixed", steps=3))
    monkeypatch.setattr(Mlp, "loss_and_gradient", too_large)
    after = train(config(tmp_path, precision="mixed", steps=5))
    assert (after.first_step, after.step, after.digest) == (3, 5, before.digest)


def test_all_problems_of_a_configuration_at_once(tmp_path: Path) -> None:
    wrong = TrainConfig(
        servers="nowhere",
        rank=2,
        ranks=2,
        steps=0,
        batch=0,
        device="tpu",
        block_bytes=100,
        hidden=(0,),
        precision="fp8",
        classes=1,
        evaluate_every=0,
        augmentation=Augmentation(flip=2),
    )
    problems = wrong.validate()
    words = ("nowhere", "rank 2", "steps", "batch", "device", "block_bytes", "hidden", "precision 'fp8'", "classes 1")
    for word in (*words, "evaluate_every 0", "augmentation: flip 2"):
        assert any(word in problem for problem in problems), word
    with pytest.raises(errors.InvalidArgument, match="nowhere"):
        train(wrong)
    assert config(tmp_path).validate() == []
    assert config(tmp_path, network="rnn").validate() == ["network 'rnn': expected one of mlp, cnn"]
    missing = config(tmp_path, data=str(tmp_path / "mnist")).validate()
    assert len(missing) == 1
    assert "mnist: no such folder: give digits, or a folder with IDX files" in missing[0]


def test_images_that_are_too_small_for_the_cnn_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes((0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 9)))
    [problem] = config(tmp_path, network="cnn", data=str(tmp_path)).validate()
    assert problem.startswith("network cnn: images of 5 x 9 are too small")
    assert config(tmp_path, data=str(tmp_path)).validate() == []


def test_optimizers_by_name() -> None:
    assert isinstance(parse_optimizer("adam"), Adam)
    assert parse_optimizer("sgd:0.5") == Sgd(0.5)
    assert isinstance(parse_optimizer("momentum:0.1"), Momentum)
    for wrong in ("rmsprop", "adam:", "adam:x", "sgd:nan", "sgd:-1", ""):
        with pytest.raises(ValueError):
            parse_optimizer(wrong)
