"""The checker of histories, on histories whose verdict is known."""

import random

import pytest

from consensus.simulation.linearizability import Answer, Counter, Operation, Register, Verdict, check


def op(action: str, value: int | None, asked: int, answered: int | None, result: int | None = None) -> Operation:
    return Operation(action, value, result, asked, answered)


def write(value: int, asked: int, answered: int | None) -> Operation:
    return op("write", value, asked, answered)


def read(value: int, asked: int, answered: int) -> Operation:
    return op("read", None, asked, answered, value)


def add(amount: int, asked: int, answered: int | None, total: int | None = None) -> Operation:
    return op("add", amount, asked, answered, total)


GOOD_REGISTERS = {
    "nothing": [],
    "one after the other": [write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7)],
    "the initial value": [read(0, 0, 1)],
    "a read beside a write sees either": [write(1, 0, 10), read(0, 1, 2), read(1, 3, 4)],
    "writes beside each other in either order": [write(1, 0, 10), write(2, 0, 10), read(2, 11, 12), read(2, 13, 14)],
    "an unknown write that happened": [write(1, 0, None), read(1, 5, 6)],
    "an unknown write that happened late": [write(1, 0, None), read(0, 5, 6), read(1, 7, 8)],
    "an unknown write that never happened": [write(1, 0, None), write(2, 1, 2), read(2, 3, 4), read(2, 5, 6)],
    "an unknown write after another one": [write(1, 0, None), write(2, 1, 2), read(2, 3, 4), read(1, 5, 6)],
    "asked at the moment of an answer": [write(1, 0, 5), read(0, 5, 6)],
}
BAD_REGISTERS = {
    "a lost write": [write(1, 0, 1), read(0, 2, 3)],
    "a stale read": [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)],
    "values that go back": [write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)],
    "a value from nowhere": [write(1, 0, 1), read(7, 2, 3)],
    "a value from the future": [read(1, 0, 1), write(1, 2, 3)],
    "two orders at once": [write(1, 0, 9), write(2, 0, 9), read(1, 10, 11), read(2, 12, 13)],
    "an unknown write that happens twice": [
        write(1, 0, None),
        read(1, 1, 2),
        write(2, 3, 4),
        read(2, 5, 6),
        read(1, 7, 8),
    ],
    "an unknown write before it was asked for": [read(1, 0, 1), write(1, 2, None)],
}


@pytest.mark.parametrize("name", GOOD_REGISTERS)
def test_good_histories_of_a_register(name: str) -> None:
    assert check(GOOD_REGISTERS[name], Register()).answer is Answer.LINEARIZABLE


@pytest.mark.parametrize("name", BAD_REGISTERS)
def test_bad_histories_of_a_register(name: str) -> None:
    verdict = check(BAD_REGISTERS[name], Register())
    assert verdict.answer is Answer.NOT
    assert verdict.stuck in BAD_REGISTERS[name]


def test_good_histories_of_a_counter() -> None:
    history = [add(1, 0, 10, 3), add(2, 0, 10, 2), read(3, 11, 12), add(4, 13, None), read(3, 14, 15), read(7, 16, 17)]
    assert check(history, Counter()).answer is Answer.LINEARIZABLE


@pytest.mark.parametrize(
    "history",
    [
        [add(1, 0, 1, 1), add(1, 2, 3, 1)],
        [add(1, 0, 1, 1), read(2, 2, 3)],
        [add(1, 0, 1, 1), add(2, 2, 3, 3), read(1, 4, 5)],
        [add(1, 0, 9, 1), add(2, 0, 9, 2)],
        [add(5, 0, None), add(1, 2, 3, 6), read(1, 4, 5)],
        [add(5, 0, None), add(1, 2, 3, 6), add(1, 4, 5, 12)],
    ],
    ids=["lost", "twice", "stale", "both first", "unknown undone", "unknown twice"],
)
def test_bad_histories_of_a_counter(history: list[Operation]) -> None:
    assert check(history, Counter()).answer is Answer.NOT


def random_history(source: random.Random, operations: int) -> list[Operation]:
    """Linearizable by making: each takes effect at one moment between being asked for and being answered."""
    value = 0
    history = []
    effects = sorted(source.randrange(0, operations * 10) for _ in range(operations))
    for effect in effects:
        asked, answered = effect - source.randrange(1, 25), effect + source.randrange(1, 25)
        kind = source.randrange(8)
        if kind < 4:
            history.append(read(value, asked, answered))
        elif kind == 4:
            # Unknown, and it happened or it did not.
            if source.random() < 0.5:
                value = effect
            else:
                effect += 10**6
            history.append(write(effect, asked, None))
        else:
            value = effect
            history.append(write(value, asked, answered))
    return history


def brute(history: list[Operation]) -> bool:
    """By the definition: some order explains every answer."""

    def explains(value: int, left: tuple[Operation, ...]) -> bool:
        first_end = min((each.answered_us for each in left if each.answered_us is not None), default=1 << 60)
        if first_end == 1 << 60:
            return True
        for place, each in enumerate(left):
            if each.asked_us > first_end or (each.action == "read" and each.result != value):
                continue
            rest = (*left[:place], *left[place + 1 :])
            if explains(each.argument if each.action == "write" else value, rest):
                return True
        return False

    return explains(0, tuple(history))


def test_random_histories_that_are_good_by_making() -> None:
    for seed in range(60):
        history = random_history(random.Random(seed), 60)
        assert check(history, Register()).answer is Answer.LINEARIZABLE, seed


def test_small_histories_agree_with_the_definition() -> None:
    verdicts = set()
    for seed in range(400):
        source = random.Random(seed)
        history = []
        for _ in range(6):
            asked = source.randrange(20)
            answered = asked + source.randrange(0, 12)
            if source.random() < 0.5:
                history.append(read(source.randrange(3), asked, answered))
            else:
                known = source.random() < 0.7
                history.append(write(source.randrange(3), asked, answered if known else None))
        answer = check(history, Register()).answer
        assert (answer is Answer.LINEARIZABLE) == brute(history), seed
        verdicts.add(answer)
    assert verdicts == {Answer.LINEARIZABLE, Answer.NOT}


def test_work_is_bounded() -> None:
    """A history of unknown additions with any number of sums: no verdict is better than a wrong one, or none ever."""
    history = [add(1 << place, 0, None) for place in range(40)]
    history.append(read((1 << 40) - 1, 1, 2))
    assert check(history, Counter(), work_max=20_000) == Verdict(Answer.UNDECIDED, 20_001)
