"""The verdict on a fault run fails for each thing that may go wrong, and only then."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from paramserver.lab.final import BlockKey, FinalState, Replica
from paramserver.lab.records import End, Record, Step
from paramserver.lab.verdict import KILL_LEADER, KILL_WORKER, Fault, Requirements, RunResult, judge

STEPS = 60
WANTED = Requirements(steps=STEPS, margin=10, accuracy_min=0.95, replicas=3)
KEY = BlockKey(1, 0)


def state(**changes: object) -> FinalState:
    copy = Replica(version=STEPS, digest="aa", weights=struct.pack("<4f", 1, 2, 3, 4))
    blocks = {key: dict.fromkeys((1, 2, 3), copy) for key in (KEY, BlockKey(2, 1))}
    return replace(FinalState(1, 1, 8, blocks, {}), **changes)  # type: ignore[arg-type]


def run(*, faults: bool) -> RunResult:
    steps = tuple(Step(number, number * 0.1) for number in range(STEPS))
    some = tuple(Record(rank, (*steps, End(6.0, 0.97, "dd"))) for rank in (0, 1))
    injected = (
        Fault(KILL_LEADER, 2, 1, at_s=2.0, restored_s=3.0, until_s=3.0),
        Fault(KILL_WORKER, 1, None, at_s=4.0, restored_s=4.0),
    )
    return RunResult(some, state(), injected if faults else ())


def with_copy(result: RunResult, **changes: object) -> RunResult:
    """Node 3's copy of one block is another."""
    blocks = {key: dict(copies) for key, copies in result.final.blocks.items()}
    blocks[KEY][3] = replace(blocks[KEY][3], **changes)  # type: ignore[arg-type]
    return replace(result, final=replace(result.final, blocks=blocks))


def test_all_well() -> None:
    verdict = judge(run(faults=True), run(faults=False), WANTED)
    assert verdict.problems == ()
    assert verdict.exit_code == 0
    assert json.loads(json.dumps(verdict.as_json())) == {
        "accuracy": 0.97,
        "steps": 60,
        "steps_per_s": 10.0,
        "faults": [
            {"kind": "kill_leader", "node": 2, "stall_ms": 0.0},
            {"kind": "kill_worker", "node": 1, "stall_ms": 0.0},
        ],
        "lost": 0,
        "duplicated": 0,
        "bit_identical": True,
    }


WRONG: dict[str, tuple[Callable[[RunResult], RunResult], str]] = {
    "a weight": (lambda r: with_copy(r, weights=struct.pack("<4f", 1, 2, 3.0000002, 4)), "1 of 4 weights differ"),
    "a digest": (lambda r: with_copy(r, digest="ab"), "digest ab, not aa"),
    "no weights": (lambda r: with_copy(r, weights=b""), "0 bytes, not 16"),
    "a version too low": (lambda r: with_copy(r, version=STEPS - 1), "1 acknowledged updates are lost"),
    "a version too high": (lambda r: with_copy(r, version=STEPS + 1), "1 updates were applied twice"),
    "a replica missing": (
        lambda r: replace(r, final=state(blocks={KEY: dict(list(r.final.blocks[KEY].items())[:2])})),
        "2 replicas of 3",
    ),
    "no state at all": (lambda r: replace(r, final=state(blocks={})), "no replica holds any block"),
    "too few steps": (
        lambda r: replace(r, records=tuple(replace(one, events=one.events[5:]) for one in r.records)[:0]),
        "0 steps were made",
    ),
    "no accuracy": (
        lambda r: replace(r, records=tuple(replace(one, events=one.events[:-1]) for one in r.records)),
        "accuracy nan% is below",
    ),
    "low accuracy": (
        lambda r: replace(
            r, records=tuple(replace(one, events=(*one.events[:-1], End(6.0, 0.9, "dd"))) for one in r.records)
        ),
        "accuracy 90.00% is below 95%",
    ),
    "another digest in a worker": (
        lambda r: replace(
            r, records=tuple(replace(one, events=(*one.events[:-1], End(6.0, 0.97, "de"))) for one in r.records)
        ),
        "2 different model digests",
    ),
    "a fault too early": (
        lambda r: replace(r, faults=(replace(r.faults[0], at_s=0.5), r.faults[1])),
        "5 steps before it, not 10",
    ),
    "a fault too late": (
        lambda r: replace(r, faults=(r.faults[0], replace(r.faults[1], at_s=5.5))),
        "5 steps after it, not 10",
    ),
    "a fault without load": (
        lambda r: replace(r, faults=(replace(r.faults[0], restored_s=2.0), r.faults[1])),
        "no load while it lasted",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_one_thing_wrong_is_noticed(wrong: str) -> None:
    change, message = WRONG[wrong]
    verdict = judge(change(run(faults=True)), run(faults=False), WANTED)
    assert verdict.exit_code == 1
    assert [problem for problem in verdict.problems if message in problem], verdict.problems


@pytest.mark.parametrize(
    "wrong", ["a weight", "a digest", "no weights", "a version too low", "a replica missing", "no state at all"]
)
def test_other_bits_are_not_called_identical(wrong: str) -> None:
    change, _ = WRONG[wrong]
    assert not judge(change(run(faults=True)), run(faults=False), WANTED).bit_identical
    assert not judge(run(faults=True), change(run(faults=False)), WANTED).bit_identical


def test_lost_counts_pairs_of_block_and_step() -> None:
    verdict = judge(with_copy(run(faults=True), version=STEPS - 3), run(faults=False), WANTED)
    assert (verdict.lost, verdict.duplicated) == (3, 0)
