"""What comes from outside cannot move the cursor."""

import io

from paramserver.cli.show import Facts, PlainScreen, one_line
from paramserver.cli.text import escape, table


def test_escape() -> None:
    assert escape("digits") == "digits"
    assert escape("a\nb\x1b[2Jc\u202ed\x00") == "a\\x0ab\\x1b[2Jc\\u202ed\\x00"
    assert escape("Zürich ✓") == "Zürich ✓"
    assert escape("x" * 300) == "x" * 199 + "…"
    assert escape("\U000e0001") == "\\U000e0001"


def test_table() -> None:
    assert table(("a", "bb"), [("1", "2"), ("333", "")]) == ["a    bb", "1    2", "333"]


def test_one_line() -> None:
    facts = Facts("run\x07", 5, 10, 0.5, 0.25, 12.0, {1: 2, 0: 1}, ("server 3 is dead",))
    assert one_line(facts) == (
        "run\\x07: step 5/10  loss 0.5000  accuracy 25.00%  12.0 steps/s  leaders 0:1 1:2  server 3 is dead"
    )


def test_training_goes_on_when_nobody_reads() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with PlainScreen(Closed(), every_s=0.0) as screen:
        screen.update(Facts("run", 1, 9))
        screen.event("a fault")


def test_plain_screen_is_not_chatty() -> None:
    stream = io.StringIO()
    with PlainScreen(stream, every_s=1000.0) as screen:
        screen._shown_s = float("-inf")
        screen.update(Facts("run", 1, 9))
        screen.update(Facts("run", 2, 9))
        screen.event("a fault\n", strong=True)
    assert stream.getvalue() == "run: step 1/9\n* a fault\\x0a\n"
