"""Bits are a function of the inputs alone (RULES S13)."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from paramserver.optim import known_answers
from paramserver.optim.factory import make
from paramserver.optim.interface import CHUNK_ELEMENTS, Update
from paramserver.wire.spec import OptimizerSpec, adam, momentum, sgd

OPTIMIZERS = [sgd(0.1), sgd(0.1, weight_decay=0.1), momentum(0.1), momentum(0.1, nesterov=True), adam()]


def update(spec: OptimizerSpec, weights: np.ndarray, gradient: np.ndarray, count: int = 2) -> list[bytes]:
    optimizer = make(spec)
    slots = tuple(np.full(weights.shape, 0.25, np.float32) for _ in range(optimizer.slots))
    out = np.empty_like(weights)
    with np.errstate(all="ignore"):
        optimizer.update(
            Update(
                weights=weights,
                gradient=gradient,
                count=count,
                slots=slots,
                scalars=optimizer.scalars,
                out=out,
                slots_out=slots,
            )
        )
    return [out.tobytes(), *(slot.tobytes() for slot in slots)]


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=str)
def test_an_element_does_not_depend_on_its_neighbours_or_its_place(spec: OptimizerSpec) -> None:
    random = np.random.default_rng(5)
    size = CHUNK_ELEMENTS + 37
    weights, gradient = (random.standard_normal(size, dtype=np.float32) for _ in range(2))
    whole = update(spec, weights, gradient)
    for start, stop in ((0, 1), (3, 1000), (CHUNK_ELEMENTS - 5, CHUNK_ELEMENTS + 9), (size - 1, size)):
        part = update(spec, weights[start:stop], gradient[start:stop])
        assert [piece[start * 4 : stop * 4] for piece in whole] == part


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=str)
def test_inputs_are_left_alone(spec: OptimizerSpec) -> None:
    weights, gradient = np.ones(100, np.float32), np.ones(100, np.float32)
    weights.flags.writeable = gradient.flags.writeable = False
    update(spec, weights, gradient)


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=str)
def test_slots_may_be_updated_in_place_or_elsewhere_with_the_same_bits(spec: OptimizerSpec) -> None:
    optimizer = make(spec)
    random = np.random.default_rng(6)
    weights, gradient = (random.standard_normal(500, dtype=np.float32) for _ in range(2))
    slots = tuple(np.abs(random.standard_normal(500, dtype=np.float32)) for _ in range(optimizer.slots))
    results = []
    for slots_out in (tuple(np.empty_like(slot) for slot in slots), slots):
        out = np.empty_like(weights)
        optimizer.update(
            Update(
                weights=weights,
                gradient=gradient,
                count=3,
                slots=slots,
                scalars=optimizer.scalars,
                out=out,
                slots_out=slots_out,
            )
        )
        results.append([out.tobytes(), *(slot.tobytes() for slot in slots_out)])
    assert results[0] == results[1]


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=str)
def test_nan_is_stored_in_one_form(spec: OptimizerSpec) -> None:
    forms = np.array([0x7FC00000, 0xFFC00000, 0x7FC01234, 0xFF800001, 0x7F800000], np.uint32).view(np.float32)
    for piece in update(spec, np.ones(5, np.float32), forms):
        bits = np.frombuffer(piece, np.uint32)
        nans = np.isnan(bits.view(np.float32))
        assert nans[:4].all()
        assert set(bits[nans].tolist()) == {0x7FC00000}


def test_subnormals_survive() -> None:
    tiny = np.full(64, 1e-40, np.float32)
    result = np.frombuffer(update(sgd(0.5), tiny, tiny, count=1)[0], np.float32)
    assert (result > 0).all()
    assert (result < tiny).all()


def test_this_machine_gives_the_known_answers() -> None:
    known_answers.check_arithmetic()
    assert known_answers.known_answers() == known_answers.EXPECTED


def test_a_thread_with_other_answers_must_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_answers, "EXPECTED", bytes(16))
    raised: list[BaseException] = []

    def check() -> None:
        try:
            known_answers.check_arithmetic()
        except known_answers.ArithmeticDiffers as error:
            raised.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert len(raised) == 1


def test_a_learning_rate_can_be_overridden() -> None:
    for spec in OPTIMIZERS:
        optimizer = make(spec)
        weights, out = np.ones(10, np.float32), np.empty(10, np.float32)
        slots = tuple(np.zeros(10, np.float32) for _ in range(optimizer.slots))
        optimizer.update(
            Update(
                weights=weights,
                gradient=weights,
                count=1,
                slots=slots,
                scalars=optimizer.scalars,
                out=out,
                slots_out=slots,
                learning_rate=0.0,
            )
        )
        assert out.tolist() == weights.tolist()
