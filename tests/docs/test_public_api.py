"""The public names and signatures are locked, documented, and what docs/api.md says."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tools import api

ENTRIES = list(api.entries())
CALLS = [entry for entry in ENTRIES if "(" in entry.shown and not entry.shown.startswith("class ")]
ARRAYS = {"pull", "pull_later", "push", "push_pull", "buffer", "accumulate", "wait", "model"}
"""Calls that take or give arrays: directly, or as the call says that they refer to."""


@pytest.mark.parametrize(("path", "text"), [(api.LOCK, api.lock), (api.PAGE, api.page)])
def test_what_is_public_is_locked(path: Path, text: object) -> None:
    """A changed name or signature is seen in review; `python -m tools.api write` rewrites both files."""
    there, here = path.read_text().splitlines(), text().splitlines()  # type: ignore[operator]
    changed = "\n".join(difflib.unified_diff(there, here, str(path.name), "the code", lineterm="", n=1))
    assert not changed, f"python -m tools.api write, if this is meant:\n{changed}"


def test_everything_public_says_what_it_is() -> None:
    assert len(ENTRIES) > 80
    assert [entry.name for entry in ENTRIES if not entry.doc] == []
    # What a dataclass writes by itself is no documentation.
    assert [entry.name for entry in ENTRIES if entry.doc.startswith(f"{entry.name.rpartition('.')[2]}(")] == []


def test_every_call_says_what_it_raises() -> None:
    makers = {"sgd", "momentum", "adam", "bsp"}
    silent = [one.name for one in CALLS if "aise" not in one.doc and one.name.rpartition(".")[2] not in makers]
    # Values of a value, and what a spec can always do.
    assert set(silent) <= {"paramserver.Tensors.digest"}


def test_calls_with_arrays_say_their_shapes() -> None:
    found = [one for one in CALLS if one.name.rpartition(".")[2] in ARRAYS]
    assert len(found) >= 2 * len(ARRAYS) - 1
    without = [one.name for one in found if "shape" not in one.doc and "as of `push_pull`" not in one.doc]
    spared = {"paramserver.Model.pull_later", "paramserver.Model.wait", "paramserver.aio.Model.push"}
    assert set(without) <= spared, "they refer to the call that says so"


def test_timeouts_say_their_unit() -> None:
    blocking = [one for one in CALLS if "timeout" in one.shown and ".aio." not in one.name]
    assert [
        one.name for one in blocking if "second" not in one.doc and "as of" not in one.doc and "future" not in one.doc
    ] == []
