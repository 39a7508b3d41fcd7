"""Flags: every problem at once, with what was expected."""

import argparse

import pytest

from paramserver.cli import flags
from paramserver.cli.flags import Flag

FLAGS = (
    Flag("--node", "which node", flags.integer(1, 65535), metavar="N", required=True),
    Flag("--members", "all nodes", flags.members, metavar="1=HOST:PORT,...", required=True),
    Flag("--rate", "a rate", flags.number(0, 1), 0.5),
    Flag("--kind", "a kind", flags.choice("fast", "slow"), "fast"),
    Flag("--json", "as JSON"),
)


def read(*words: str) -> tuple[flags.Values, list[str]]:
    parser = argparse.ArgumentParser(allow_abbrev=False, formatter_class=flags.HelpFormatter)
    flags.add(parser, FLAGS)
    parsed, unknown = parser.parse_known_args(words)
    return flags.read(FLAGS, parsed, unknown)


def test_values_and_defaults() -> None:
    values, problems = read("--node", "2", "--members", "1=a:1,2=[::1]:2", "--json")
    assert problems == []
    assert (values["node"], values["members"], values["rate"], values["json"]) == (
        2,
        {1: "a:1", 2: "[::1]:2"},
        0.5,
        True,
    )
    assert values.set_ones(["node", "rate"]) == {"node": 2}


def test_all_problems_at_once() -> None:
    _, problems = read("--node", "zero", "--rate", "--kind", "fsat", "--mebmers", "1=a:1", "stray")
    assert problems == [
        "unknown flag --mebmers; did you mean --members?",
        "unexpected argument 'stray'",
        "--node 'zero': expected a whole number from 1 to 65535",
        "--members is missing: all nodes",
        "--rate needs a value (RATE): a rate",
        "--kind 'fsat': expected one of fast, slow; did you mean fast?",
    ]


def test_flags_are_not_abbreviated() -> None:
    _, problems = read("--nod", "2", "--members=1=a:1")
    assert problems[0] == "unknown flag --nod; did you mean --node?"


def test_detours() -> None:
    assert flags.detours("a:1=b:2,[::1]:3=c:4") == {"a:1": "b:2", "[::1]:3": "c:4"}


@pytest.mark.parametrize("text", ["", "a:1", "a:1=", "=b:1", "a:1=b", "a:1=b:1,a:1=c:1", "a:1=b:1=c:1"])
def test_bad_detours(text: str) -> None:
    with pytest.raises(ValueError):
        flags.detours(text)


@pytest.mark.parametrize("text", ["", "a", "a:", ":1", "a:0", "a:65536", "a:x", "a b:1", "::1:7001", "a/b:1", "a:1\n"])
def test_bad_endpoints(text: str) -> None:
    with pytest.raises(ValueError):
        flags.endpoint(text)


@pytest.mark.parametrize("text", ["127.0.0.1:7001", "host:1", "[::1]:65535"])
def test_good_endpoints(text: str) -> None:
    assert flags.endpoint(text) == text


@pytest.mark.parametrize("text", ["", "a:1", "0=a:1", "1=a:1,1=b:1", "1=a:1,2=a:1", "x=a:1", "1=a:1,", "65536=a:1"])
def test_bad_members(text: str) -> None:
    with pytest.raises(ValueError):
        flags.members(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-0.1", "1.1", "x"])
def test_bad_numbers(text: str) -> None:
    with pytest.raises(ValueError):
        flags.number(0, 1)(text)


def test_twice_the_same_endpoint() -> None:
    with pytest.raises(ValueError, match="twice"):
        flags.endpoints("a:1,b:1,a:1")


def test_help_shows_values_as_needed() -> None:
    parser = argparse.ArgumentParser(prog="x", formatter_class=flags.HelpFormatter)
    flags.add(parser, FLAGS)
    text = parser.format_help()
    assert "--node N" in text
    assert "[N]" not in text
    assert "(default 0.5)" in text
