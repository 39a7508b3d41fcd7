"""What threads tell the host: in order, together, each once, whoever posts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from consensus.runtime.mailbox import Mailbox


class Host:
    """Wakes by hand; notes where an input begins and ends."""

    def __init__(self) -> None:
        self.woken: list[Callable[[], None]] = []
        self.told: list[str] = []
        self.mailbox = Mailbox(self.woken.append)
        self.mailbox.together = self.input

    @contextmanager
    def input(self) -> Iterator[bool]:
        self.told.append("[")
        yield True
        self.told.append("]")

    def post(self, name: str) -> None:
        self.mailbox.post(lambda: self.told.append(name))

    def turn(self) -> None:
        woken = self.woken[:]
        self.woken.clear()  # in place: the mailbox holds its `append`
        for read in woken:
            read()


def test_what_waits_is_told_together_in_order_after_one_wake_up() -> None:
    host = Host()
    for name in "abc":
        host.post(name)
    assert len(host.woken) == 1
    host.turn()
    assert host.told == ["[", "a", "b", "c", "]"]
    host.post("d")
    host.turn()
    assert host.told[5:] == ["[", "d", "]"]


def test_what_a_letter_posts_has_its_own_turn() -> None:
    host = Host()
    host.mailbox.post(lambda: host.post("later"))
    host.turn()
    assert host.told == ["[", "]"]
    host.turn()
    assert host.told == ["[", "]", "[", "later", "]"]


def test_a_letter_that_raises_does_not_silence_those_behind_it() -> None:
    host = Host()

    def bad() -> None:
        raise ValueError("a bug")

    host.mailbox.post(bad)
    host.post("behind")
    with pytest.raises(ValueError, match="a bug"):
        host.turn()
    host.turn()
    assert "behind" in host.told


def test_when_the_loop_is_gone_every_post_says_so() -> None:
    def gone(_: Callable[[], None]) -> None:
        raise RuntimeError("Event loop is closed")

    mailbox = Mailbox(gone)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            mailbox.post(lambda: None)


def test_threads_lose_nothing_and_keep_their_order() -> None:
    count, posters = 2000, 4

    async def whole() -> list[tuple[int, int]]:
        told: list[tuple[int, int]] = []
        everything = asyncio.Event()

        def note(poster: int, number: int) -> None:
            told.append((poster, number))
            if len(told) == count * posters:
                everything.set()

        mailbox = Mailbox(asyncio.get_running_loop().call_soon_threadsafe)

        def work(poster: int) -> None:
            for number in range(count):
                mailbox.post(lambda number=number: note(poster, number))  # type: ignore[misc]

        threads = [threading.Thread(target=work, args=(poster,)) for poster in range(posters)]
        for thread in threads:
            thread.start()
        async with asyncio.timeout(20):
            await everything.wait()
        for thread in threads:
            thread.join()
        return told

    told = asyncio.run(whole())
    for poster in range(posters):
        assert [number for one, number in told if one == poster] == list(range(count))
