"""Bad input row 17: messages that no honest member sends are dropped and counted, and change nothing."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from consensus.core.configuration import encode_configuration
from consensus.core.errors import InvariantViolated
from consensus.core.interface import (
    AppendRequest,
    AppendResponse,
    CampaignNow,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    ReadRequest,
    ReadResponse,
    RejoinRequest,
    RejoinResponse,
    Removed,
    SnapshotMeta,
    SnapshotOffer,
    VoteRequest,
    VoteResponse,
)
from tests.unit.core.harness import Host, entry, follower, leader, meta

HUGE = 2**64 - 1
FOUR = Configuration((1, 2, 3), learners=(4,), next_replica=5)
BODIES: dict[type, dict[str, Any]] = {
    VoteRequest: {"pre": False, "last_index": 9, "last_term": 1},
    VoteResponse: {"pre": False, "granted": True},
    AppendRequest: {"previous_index": 1, "previous_term": 1, "commit": 1, "entries": ()},
    AppendResponse: {"rejected": False, "match_index": 1},
    Heartbeat: {"commit": 1, "round": 1},
    HeartbeatResponse: {"round": 1, "match_index": 1},
    SnapshotOffer: {"meta": meta(9, 1)},
    CampaignNow: {"last_index": 1},
    ReadRequest: {"token": 1},
    ReadResponse: {"token": 1, "index": 1, "age_ms": 1, "refused": False},
    Removed: {"index": 1},
    RejoinRequest: {},
    RejoinResponse: {"last_index": 1, "for_incarnation": 1},
}


def picture(host: Host) -> tuple[Any, ...]:
    return host.core.status(), host.terms()


def dropped_for(host: Host, message: Any) -> str:
    """Step the message; what it was counted as. Nothing else may have happened."""
    before, counts = picture(host), dict(host.core.dropped)
    assert host.step(message) == []
    assert picture(host) == before
    (reason,) = [name for name, count in host.core.dropped.items() if count != counts.get(name, 0)]
    return reason


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("make", [follower, leader], ids=["follower", "leader"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sender": 0}, "from_nobody"),
        ({"sender": HUGE}, "from_nobody"),
        ({"sender": "me"}, "from_myself"),
        ({"to": 9}, "not_for_me"),
        ({"term": HUGE}, "bad_term"),
        ({"term": 2**63}, "bad_term"),
        ({"term": 0}, "bad_term"),
        ({"incarnation": HUGE}, "bad_incarnation"),
    ],
    ids=[
        "nobody",
        "beyond all ids",
        "itself",
        "another receiver",
        "largest term",
        "large term",
        "no term",
        "incarnation",
    ],
)
def test_header(kind: type, make: Callable[..., Host], changes: dict[str, Any], reason: str) -> None:
    host = make(1)
    fields = {"sender": 3, "to": host.replica, "term": host.term, "incarnation": 1, **BODIES[kind], **changes}
    if fields["sender"] == "me":
        fields["sender"] = host.replica
    assert dropped_for(host, kind(**fields)) == reason


@pytest.mark.parametrize("kind", [VoteResponse, AppendResponse, HeartbeatResponse, ReadRequest, RejoinRequest])
@pytest.mark.parametrize("make", [follower, leader], ids=["follower", "leader"])
def test_strangers_were_asked_nothing(kind: type, make: Callable[..., Host]) -> None:
    """Who leads or campaigns may be a member that this log does not know yet; who answers can't be."""
    host = make(1)
    for term in (host.term, 50):
        assert dropped_for(host, host.message(kind, sender=4, term=term, **BODIES[kind])) == "from_stranger"


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        (VoteRequest, {"last_index": HUGE}, "bad_index"),
        (VoteRequest, {"last_term": 99}, "bad_index"),
        (AppendRequest, {"commit": HUGE}, "bad_index"),
        (AppendRequest, {"previous_index": HUGE}, "bad_index"),
        (AppendRequest, {"previous_term": 99}, "bad_previous"),
        (AppendRequest, {"previous_term": 0}, "bad_previous"),
        (AppendRequest, {"previous_index": 0}, "bad_previous"),
        (AppendRequest, {"entries": (entry(1, 3),)}, "bad_entries"),
        (AppendRequest, {"entries": (entry(1, 2), entry(1, 4))}, "bad_entries"),
        (AppendRequest, {"entries": (entry(1, 2), entry(1, 2))}, "bad_entries"),
        (AppendRequest, {"entries": (entry(5, 2), entry(1, 3))}, "bad_entries"),
        (AppendRequest, {"entries": (entry(0, 2),)}, "bad_entries"),
        (AppendRequest, {"entries": (entry(99, 2),)}, "bad_entries"),
        (AppendRequest, {"entries": (entry(1, 2, kind=EntryKind.CONFIGURATION),)}, "bad_configuration"),
        (AppendResponse, {"match_index": HUGE}, "bad_index"),
        (AppendResponse, {"conflict_index": HUGE}, "bad_index"),
        (AppendResponse, {"conflict_term": 99}, "bad_index"),
        (Heartbeat, {"commit": HUGE}, "bad_index"),
        (HeartbeatResponse, {"match_index": HUGE}, "bad_index"),
        (CampaignNow, {"last_index": HUGE}, "bad_index"),
        (ReadRequest, {"token": HUGE}, "bad_index"),
        (ReadResponse, {"index": HUGE}, "bad_index"),
        (ReadResponse, {"age_ms": -1}, "bad_index"),
        (Removed, {"index": HUGE}, "bad_index"),
        (Removed, {"index": 0}, "bad_index"),
        (RejoinResponse, {"last_index": HUGE}, "bad_index"),
        (RejoinResponse, {"for_incarnation": HUGE}, "bad_index"),
        (SnapshotOffer, {"meta": meta(HUGE, 1)}, "bad_index"),
        (SnapshotOffer, {"meta": meta(9, 99)}, "bad_index"),
        (SnapshotOffer, {"meta": meta(0, 0)}, "bad_index"),
    ],
)
@pytest.mark.parametrize("term", [1, 50], ids=["own term", "higher term"])
def test_body(kind: type, changes: dict[str, Any], reason: str, term: int) -> None:
    """A bad message of a higher term does not even raise the term."""
    host = follower(1)
    fields = {"sender": 3, "to": host.replica, "term": term, "incarnation": 1, **BODIES[kind], **changes}
    assert dropped_for(host, kind(**fields)) == reason


def test_things_that_are_no_messages() -> None:
    host = follower(1)
    for thing in (None, b"\x00\xff", 7, object()):
        assert dropped_for(host, thing) == "not_a_message"


def test_bad_configuration_in_a_snapshot() -> None:
    host = follower(1)
    for voters in ((), (1, 1, 2), (0, 1, 2)):
        offered = host.message(SnapshotOffer, sender=3, meta=meta(9, 1, Configuration(voters)))
        host.step(offered)
        assert host.writing == []
    assert host.core.dropped == {"bad_snapshot": 3}


@pytest.mark.parametrize("seed", range(6))
def test_noise_from_members_never_crashes(seed: int) -> None:
    """Well-typed nonsense. Only a leader's claim against what is committed here may end the process, on purpose."""
    draw = random.Random(seed)

    def number() -> int:
        return draw.choice([0, 1, 2, 3, 4, 7, 2**31, 2**63 - 1, 2**63, HUGE, draw.randrange(0, 12)])

    def some_entries() -> tuple[Entry, ...]:
        return tuple(
            Entry(number(), number(), draw.choice(list(EntryKind)), draw.choice(payloads), 0)
            for _ in range(draw.randrange(0, 3))
        )

    payloads = [b"x", encode_configuration(FOUR), encode_configuration(replace(FOUR, voters=(2, 3), learners=()))]
    host = draw.choice([follower, leader])(1, 1, 2)
    for _ in range(3000):
        kind = draw.choice([kind for kind in BODIES if kind is not Removed])
        fields: dict[str, Any] = {}
        for name in BODIES[kind]:
            if name in ("pre", "granted", "rejected", "refused"):
                fields[name] = draw.random() < 0.5
            elif name == "entries":
                fields[name] = some_entries()
            elif name == "meta":
                fields[name] = SnapshotMeta(number(), number(), Configuration((1, 2, 3)), "noise")
            else:
                fields[name] = number()
        header = {"sender": number(), "to": draw.choice([host.replica, number()]), "incarnation": 1}
        term = draw.choice([host.term, number(), host.term + 1])
        before = host.core.status()
        try:
            host.step(kind(**header, term=term, **fields))
        except InvariantViolated as error:
            if "is committed" not in str(error):
                raise
            return
        after = host.core.status()
        assert after.term >= before.term
        assert after.commit_index >= before.commit_index
        host.tick(draw.choice([0, 10]))
        host.persist()
