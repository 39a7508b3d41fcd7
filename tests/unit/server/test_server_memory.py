"""The formula that bounds a server's memory says what docs/operations.md says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paramserver import memory
from paramserver.config import NodeConfig

MIB = 1 << 20
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "operations.md"
CONFIG = NodeConfig(node=1, members={1: "127.0.0.1:7001"}, data_dir="data")
USUAL: dict[str, Any] = {
    "states": [1 << 29, 1 << 28, 1 << 28, 0],
    "groups": 4,
    "shards": 3,
    "ranks": 8,
    "block_bytes": MIB,
    "peers": 2,
    "streams": 8,
    "calls": 20,
    "connections": 10,
}


def test_every_term_is_documented_and_no_other() -> None:
    text = DOCUMENT.read_text().partition("## Memory")[2]
    rows = re.findall(r"^\| (\w+) \|", text, re.MULTILINE)
    assert rows[1:] == list(memory.bound(CONFIG, **USUAL))


@pytest.mark.parametrize(
    ("option", "term"),
    [
        ("window_bytes", "sums"),
        ("uncommitted_bytes_max", "uncommitted"),
        ("replies_bytes_max", "replies"),
        ("pulls_bytes_max", "pulls"),
        ("stream_window_bytes", "streams"),
    ],
)
def test_each_window_is_an_option(option: str, term: str) -> None:
    usual = memory.bound(CONFIG, **USUAL)
    smaller = memory.bound(replace(CONFIG, **{option: MIB}), **USUAL)
    assert smaller[term] < usual[term]
    problems = replace(CONFIG, **{option: 1}).validate()
    assert [problem for problem in problems if problem.startswith(option)] == problems
    assert len(problems) == 1


def test_how_many_workers_push_counts_with_their_streams_alone() -> None:
    few, many = (memory.bound(CONFIG, **{**USUAL, "streams": count}) for count in (8, 64))
    assert {term for term in few if few[term] != many[term]} == {"streams"}
    assert many["streams"] == 64 * (4 * MIB + 4 * MIB)


def test_what_the_document_says_of_the_defaults() -> None:
    """Three groups and the catalogue, eight workers with a stream to each group, beside state and log."""
    terms = memory.bound(CONFIG, **{**USUAL, "streams": 24})
    beside = sum(bytes_ for term, bytes_ in terms.items() if term not in ("state", "log"))
    (said,) = re.findall(r"below ([\d.]+) GB", DOCUMENT.read_text())
    assert float(said) - 0.1 < beside / 1e9 < float(said)


def test_a_large_state_has_a_log_no_longer_than_itself() -> None:
    due = CONFIG.runtime_options().snapshot_due_bytes
    assert due(0) == 8 * MIB
    assert due(10 * MIB) == 40 * MIB
    assert due(100 * MIB) == 256 * MIB
    assert due(10_000 * MIB) == 10_000 * MIB
    assert replace(CONFIG, snapshot_log_bytes_max=20 * MIB).runtime_options().snapshot_due_bytes(10 * MIB) == 20 * MIB
