"""Which replica a pull asks."""

from __future__ import annotations

from typing import Any

import pytest

from worker.errors import InvalidArgument
from worker.replicas import (
    REST_FIRST_S,
    REST_MOST_S,
    SILENCE_FIRST_S,
    SILENCE_MOST_S,
    PullPolicy,
    Replicas,
    checked_policy,
)

NODES = ("a:1", "b:2", "c:3")


class Now:
    def __init__(self) -> None:
        self.s = 50.0

    def __call__(self) -> float:
        return self.s


def of(policy: PullPolicy, **options: Any) -> tuple[Replicas, Now]:
    now = Now()
    return Replicas(policy, now_s=now, **options), now


def test_least_outstanding_asks_who_has_least_to_send() -> None:
    replicas, _ = of(PullPolicy.LEAST_OUTSTANDING)
    replicas.asked("a:1", 300)
    replicas.asked("b:2", 100)
    replicas.asked("c:3", 200)
    assert replicas.choose(NODES) == "b:2"
    replicas.asked("b:2", 150)
    assert replicas.choose(NODES) == "c:3"
    replicas.arrived("a:1", 250)
    assert replicas.choose(NODES) == "a:1"
    assert replicas.outstanding("a:1") == 50


def test_a_fast_replica_gets_more_than_a_slow_one() -> None:
    """Two pieces on their way a replica; each turn the fast ones send a whole piece, the slow one a tenth."""
    replicas, _ = of(PullPolicy.LEAST_OUTSTANDING)
    left = dict.fromkeys(NODES, 0)
    asked = dict.fromkeys(NODES, 0)
    for _ in range(200):
        for _ in range(3):
            chosen = replicas.choose(NODES)
            asked[chosen] += 1
            left[chosen] += 100
            replicas.asked(chosen, 100)
        for node, speed in zip(NODES, (100, 100, 10), strict=True):
            sent = min(left[node], speed)
            left[node] -= sent
            replicas.arrived(node, sent)
    assert asked["c:3"] < asked["a:1"] // 3
    assert abs(asked["a:1"] - asked["b:2"]) <= 5


def test_equals_take_turns_from_where_the_client_begins() -> None:
    for first in range(3):
        replicas, _ = of(PullPolicy.LEAST_OUTSTANDING, first=first)
        chosen = [replicas.choose(NODES) for _ in range(6)]
        assert sorted(chosen) == sorted(NODES * 2)
        assert chosen[0] == NODES[-first % 3]


def test_round_robin_looks_at_turns_alone() -> None:
    replicas, _ = of(PullPolicy.ROUND_ROBIN)
    replicas.asked("b:2", 10**9)
    assert [replicas.choose(NODES) for _ in range(5)] == ["a:1", "b:2", "c:3", "a:1", "b:2"]
    assert replicas.choose(("b:2", "c:3")) == "c:3"


def test_nearest_stays_in_its_zone_while_somebody_there_is_well() -> None:
    zones = {"a:1": "east", "b:2": "west", "c:3": "west"}
    replicas, now = of(PullPolicy.NEAREST, zone="west", zones=lambda: zones)
    replicas.asked("b:2", 10**9)
    assert [replicas.choose(NODES) for _ in range(3)] == ["c:3"] * 3
    replicas.failed("c:3")
    assert replicas.choose(NODES) == "b:2"
    replicas.failed("b:2")
    assert replicas.choose(NODES) == "a:1", "nobody near is well"
    now.s += REST_MOST_S
    assert replicas.choose(NODES) == "c:3"
    zones.clear()
    replicas.asked("a:1", 5)
    assert replicas.choose(NODES) == "c:3", "without labels: by bytes"


def test_the_leader_is_asked_while_it_is_well() -> None:
    replicas, _ = of(PullPolicy.LEADER)
    replicas.asked("c:3", 10**9)
    assert [replicas.choose(NODES, leader="c:3") for _ in range(2)] == ["c:3", "c:3"]
    assert replicas.choose(("a:1", "b:2"), leader="c:3") == "a:1", "asked already"
    replicas.failed("c:3")
    assert replicas.choose(NODES, leader="c:3") == "b:2"


def test_who_failed_rests_longer_each_time_and_is_back_when_something_works() -> None:
    replicas, now = of(PullPolicy.ROUND_ROBIN)
    rests = []
    for _ in range(8):
        replicas.failed("a:1")
        began = now.s
        while replicas.choose(("a:1", "b:2")) == "b:2":
            now.s += REST_FIRST_S / 20
        rests.append(now.s - began)
        replicas.choose(("b:2",))
    assert rests == sorted(rests)
    assert REST_FIRST_S <= rests[0] < 2 * REST_FIRST_S
    assert REST_MOST_S <= rests[-1] < 1.2 * REST_MOST_S
    replicas.failed("a:1")
    replicas.worked("a:1")
    assert {replicas.choose(("a:1", "b:2")) for _ in range(2)} == {"a:1", "b:2"}


def test_a_server_rests_as_long_as_it_asked_for_and_not_longer_than_the_bound() -> None:
    replicas, now = of(PullPolicy.ROUND_ROBIN)
    replicas.failed("a:1", at_least_s=1.0)
    replicas.choose(("b:2",))
    now.s += 0.9
    assert replicas.choose(("a:1", "b:2")) == "b:2"
    now.s += 0.2
    assert replicas.choose(("a:1", "b:2")) == "a:1"
    replicas.failed("a:1", at_least_s=1e9)
    replicas.choose(("b:2",))
    now.s += REST_MOST_S
    assert replicas.choose(("a:1", "b:2")) == "a:1"


def test_patience_grows_while_servers_are_slow_and_shrinks_when_they_are_not() -> None:
    replicas, _ = of(PullPolicy.LEAST_OUTSTANDING)
    assert replicas.silence_s == SILENCE_FIRST_S
    for node in NODES * 3:
        replicas.silent(node)
    assert replicas.silence_s == SILENCE_MOST_S
    replicas.worked("a:1")
    assert SILENCE_FIRST_S < replicas.silence_s < SILENCE_MOST_S
    for _ in range(30):
        replicas.worked("a:1")
    assert replicas.silence_s == SILENCE_FIRST_S
    replicas.silent("b:2")
    assert replicas.choose(("b:2", "c:3")) == "c:3", "it rests as after any failure"


def test_if_all_rest_the_one_that_is_back_first_is_asked() -> None:
    replicas, now = of(PullPolicy.LEAST_OUTSTANDING)
    for node in ("c:3", "a:1", "b:2"):
        replicas.failed(node)
        now.s += 0.01
    assert replicas.choose(NODES) == "c:3"


@pytest.mark.parametrize(
    ("policy", "zone", "words"),
    [
        ("fastest", "", "pull_policy 'fastest'.*least_outstanding, round_robin, nearest, leader"),
        ("", "", "pull_policy ''"),
        (None, "", "pull_policy None"),
        ("nearest", "", "nearest.*without a zone.*--zone"),
        ("round_robin", "a b", "zone: expected 1 to 63 letters.*received a b"),
        ("nearest", "-x", "zone"),
        ("nearest", "x" * 64, "zone"),
        ("nearest", "é", "zone"),
        ("nearest", 5, "zone.*5"),
    ],
)
def test_what_no_policy_can_be(policy: Any, zone: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        checked_policy(policy, zone)


def test_policies_by_name() -> None:
    assert [checked_policy(policy.value, "east.1") for policy in PullPolicy] == list(PullPolicy)
    assert checked_policy("least_outstanding", "") is PullPolicy.LEAST_OUTSTANDING
