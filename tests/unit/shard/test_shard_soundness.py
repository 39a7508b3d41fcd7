"""Who is odd, what follows, and when nobody knows (RULES D1, FAULTS 31)."""

from __future__ import annotations

import pytest

from paramserver.shard.digests import Verdict
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.spec import momentum
from tests.unit.shard.kit import MODEL, Rank, Replies, expected_weights, flip, hello, same_bits, update_command
from tests.unit.shard.replicas import Replicas


def odd(replicas: Replicas, replica: int, block: int = 1) -> None:
    """Step 0 is done and compared; then memory changes on one replica."""
    replicas.step(0)
    replicas.talk()
    flip(replicas[replica].weights(block))


def test_the_odd_one_of_three_serves_nothing_until_it_is_rebuilt() -> None:
    replicas = Replicas()
    odd(replicas, 3)
    replicas.step(1)
    replicas.talk()
    assert len(replicas[3].distrusted) == 1
    assert "model 7 block 1 version 2: equal last at version 1" in replicas[3].distrusted[0]
    with pytest.raises(Refusal) as refused:
        replicas.read(3, version=1)
    assert refused.value.reason is Reason.DAMAGED
    assert replicas[1].distrusted == replicas[2].distrusted == []
    replicas.step(2)
    assert replicas.rank.replies.seen[-1] == (2, 3, "APPLIED"), "the others go on"
    replicas.talk()
    replicas.rebuild(3, after=2)
    replicas.talk()
    replicas.read(3, version=3)
    compared, unequal = (replicas[1].leader.counters[name] for name in ("digests_compared", "digests_unequal"))
    replicas.step(3)
    replicas.talk()
    assert replicas[1].leader.counters["digests_compared"] > compared
    assert replicas[1].leader.counters["digests_unequal"] == unequal
    assert replicas[3].leader.counters["replicas_rebuilt"] == 1
    assert same_bits(replicas[3].weights(1), expected_weights(replicas.spec, 1, 4))


def test_an_odd_leader_finds_itself_wrong_ends_its_streams_and_names_what_it_served() -> None:
    replicas = Replicas()
    odd(replicas, 1)
    replicas.step(1)
    replicas.read(1, block=1, version=2)
    replicas.read(1, block=1, version=2)
    replicas.talk()
    assert len(replicas[1].distrusted) == 1
    alarm = replicas[1].alarms[-1]
    for part in ("model 7 block 1 version 2", "equal last at version 1", "2 pulls", "versions 2 to 2", "its workers"):
        assert part in alarm
    refusal = replicas.rank.replies.refusal
    assert refusal is not None
    assert refusal.reason is Reason.NOT_READY
    with pytest.raises(Refusal) as refused:
        replicas[1].leader.open_stream(hello(), Replies())
    assert refused.value.reason is Reason.NOT_READY
    replicas.new_leader(3, term=2)
    with pytest.raises(Refusal) as refused:
        replicas[1].leader.open_stream(hello(), Replies())
    assert refused.value.reason is Reason.NOT_LEADER
    replicas.rank = Rank(replicas[3], replicas.spec)
    replicas.step(2)
    replicas.rebuild(1, after=3)
    replicas.talk()
    assert same_bits(replicas[1].weights(1), expected_weights(replicas.spec, 1, 3))
    assert not replicas[2].distrusted + replicas[3].distrusted


def test_two_that_differ_stop_writes_until_somebody_decides() -> None:
    replicas = Replicas(2)
    odd(replicas, 2)
    replicas.step(1)
    replicas.talk()
    assert not replicas[1].distrusted + replicas[2].distrusted
    assert any("no majority" in alarm for alarm in replicas[1].alarms)
    assert replicas.rank.replies.refusal is not None
    with pytest.raises(Refusal) as refused:
        replicas[1].leader.open_stream(hello(), Replies())
    assert refused.value.reason is Reason.NOT_READY
    assert "no majority" in str(refused.value)
    replicas.read(1, version=2)
    assert replicas[1].holds == [True], "nobody is filled with a state in doubt"
    replicas.pass_time()
    assert len([alarm for alarm in replicas[1].alarms if "no majority" in alarm]) == 1


def test_the_third_is_asked_when_what_it_said_was_lost_and_then_writes_go_on() -> None:
    replicas = Replicas()
    odd(replicas, 2)
    replicas.step(1)
    while replicas[3].leader.note():
        pass
    replicas.talk(2)
    assert replicas.rank.replies.refusal is not None, "one against one: nobody knows"
    assert not replicas[1].distrusted + replicas[2].distrusted
    replicas.pass_time(200)
    assert len(replicas[2].distrusted) == 1
    assert replicas[1].distrusted == []
    assert replicas[1].holds == [True, False]
    replicas.rank = Rank(replicas[1], replicas.spec)
    replicas.step(2)
    assert replicas.rank.replies.seen[-1] == (2, 3, "APPLIED")


def found_odd_but_not_told() -> Replicas:
    """Replica 2 was found wrong at version 2, the verdict was lost, and 3 is silent from then on."""
    replicas = Replicas()
    odd(replicas, 2)
    replicas.step(1)
    while note := replicas[3].leader.note():
        replicas[1].leader.noted(3, note)
    while note := replicas[2].leader.note():
        replicas[1].leader.noted(2, note)
    assert [to for to, _ in replicas[1].reports] == [2]
    replicas[1].reports.clear()
    return replicas


def test_what_is_known_to_be_odd_puts_later_versions_in_no_doubt() -> None:
    """`test_simulation_diverging.py`, seed 12: the third was behind, and was not filled because of the new doubt."""
    replicas = found_odd_but_not_told()
    replicas.step(2)
    replicas.talk(2)
    assert not any("no majority" in alarm for alarm in replicas[1].alarms)
    assert replicas.rank.replies.refusal is None
    replicas.step(3)
    assert replicas.rank.replies.seen[-1] == (2, 4, "APPLIED")
    assert replicas[1].holds == []


def test_a_verdict_that_was_lost_is_told_again_though_nothing_is_written() -> None:
    replicas = found_odd_but_not_told()
    replicas.pass_time(200)
    assert len(replicas[2].distrusted) == 1
    replicas.rebuild(2, after=1)
    replicas.pass_time(200)
    replicas[1].reports.clear()
    replicas[1].leader.tick(replicas.now_ms + 100)
    assert replicas[1].reports == [], "it was compared equal since"
    assert replicas[2].distrusted == []


def test_what_was_under_way_when_writes_stopped_does_not_stop_the_window_afterwards() -> None:
    """The window of open sums moves on although no stream was there to see it."""
    replicas = Replicas()
    odd(replicas, 2)
    replicas.rank.push(1, 0, 1, 2)
    replicas[1].log.commit()
    replicas[2].apply()
    replicas[1].apply(1)
    replicas[1].apply(1)
    replicas.talk(2)
    assert replicas.rank.replies.refusal is not None
    replicas[1].apply()
    replicas[3].apply()
    replicas.talk()
    replicas.rank = Rank(replicas[1], replicas.spec)
    for step in range(2, 30):
        replicas.step(step)
        replicas.talk()
    assert replicas.rank.replies.seen[-1] == (2, 30, "APPLIED")


def test_a_newer_version_with_a_majority_settles_what_was_in_doubt_before() -> None:
    """The third never gets to say what it had of the version in doubt."""
    replicas = Replicas()
    odd(replicas, 2, block=0)
    replicas.rank.push(1, 0)
    replicas[1].log.commit()
    for replica in (1, 2, 3):
        replicas[replica].apply()
    while replicas[3].leader.note():
        pass
    replicas[1].log.add(update_command(replicas.spec, 0, 2))
    replicas.talk(2)
    assert replicas.rank.replies.refusal is not None
    replicas.apply()
    replicas.talk(3)
    replicas.rank = Rank(replicas[1], replicas.spec)
    assert replicas.rank.replies.opened
    replicas.talk(1, 2)
    assert len(replicas[2].distrusted) == 1


def test_a_slot_of_the_optimizer_counts_too() -> None:
    replicas = Replicas(optimizer=momentum(0.1, 0.9))
    replicas.step(0)
    replicas.talk()
    flip(replicas[3].machine.shards[MODEL].private[2].slots[0])
    replicas.step(1)
    replicas.talk()
    assert "block 2 version 2" in replicas[3].distrusted[0]


def test_a_learner_that_is_odd_is_rebuilt_and_has_no_say() -> None:
    replicas = Replicas()
    for node in replicas.nodes.values():
        node.voters = (1, 2)
    odd(replicas, 3)
    replicas.step(1)
    replicas.talk(3)
    assert replicas.rank.replies.refusal is None
    replicas.talk()
    assert len(replicas[3].distrusted) == 1
    assert not replicas[1].distrusted + replicas[2].distrusted


def verdicts(replicas: Replicas) -> list[bytes]:
    return [content for to, content in replicas[1].reports if content.startswith(b"V")]


def test_a_verdict_that_comes_twice_late_or_from_anybody_else_does_no_harm() -> None:
    replicas = Replicas()
    odd(replicas, 2)
    replicas.step(1)
    for replica in (3, 2):
        while note := replicas[replica].leader.note():
            replicas[1].leader.noted(replica, note)
    (verdict,) = set(verdicts(replicas))
    replicas[2].leader.noted(3, verdict)
    assert replicas[2].distrusted == [], "replica 3 does not lead"
    replicas[3].leader.noted(1, verdict)
    assert replicas[3].distrusted == [], "it has what the verdict calls right"
    replicas[2].leader.noted(1, verdict)
    replicas[2].leader.noted(1, verdict)
    assert len(replicas[2].distrusted) == 1
    replicas.rebuild(2, after=3)
    replicas[2].leader.noted(1, verdict)
    assert replicas[2].distrusted == [], "it is about the state of before"


def test_a_verdict_can_be_anything() -> None:
    replicas = Replicas()
    replicas.step(0)
    whole = Verdict(MODEL, 1, 1, bytes(16), None).encode()
    for note in (b"V", b"V\x01", whole[:-1], whole + b"x", b"V\x02" + whole[2:]):
        replicas[2].leader.noted(1, note)
    for model, block, version in ((8, 1, 1), (MODEL, 77, 1), (MODEL, 1, 5), (MODEL, 1, 1 << 60)):
        replicas[2].leader.noted(1, Verdict(model, block, version, bytes(16), 3).encode())
    assert replicas[2].distrusted == []
    assert replicas[2].leader.counters["notes_malformed"] == 5
    assert replicas[2].leader.counters["verdicts_unfounded"] == 4
    replicas[2].leader.noted(1, whole)
    assert "never compared equal" in replicas[2].distrusted[0]


def test_a_new_leader_finds_out_anew() -> None:
    replicas = Replicas()
    odd(replicas, 2)
    replicas.step(1)
    replicas.new_leader(3, term=2)
    replicas.rank = Rank(replicas[3], replicas.spec)
    replicas.step(2)
    replicas.talk()
    assert len(replicas[2].distrusted) == 1
    assert not replicas[1].distrusted + replicas[3].distrusted
