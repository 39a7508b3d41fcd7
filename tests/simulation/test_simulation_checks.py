"""Every check that the simulator makes after an event can fail: pictures of replicas that break one promise each.

Beside these, `test_core_random` shows the checker of Raft's properties, `test_linearizability` that of histories, and
`test_simulation_catches` that bugs in the code itself are found by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from consensus.core.configuration import encode_configuration
from consensus.core.interface import (
    AppendResponse,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Role,
    Status,
    VoteRequest,
    VoteResponse,
)
from consensus.simulation.cluster import small_runtime_options
from consensus.simulation.errors import Violated
from consensus.simulation.history import History, Line
from consensus.simulation.ledger import Ledger, encode
from consensus.simulation.lives import DurableLog, Lives
from consensus.simulation.quorums import is_quorum, minority_at_most, quorums_meet
from consensus.simulation.requests import Requests
from consensus.simulation.schedule import Scheduler
from consensus.simulation.speech import Speech
from consensus.simulation.trace import Trace
from consensus.simulation.witness import Witness, WitnessedMachine
from consensus.storage.interface import GroupAppend, RecoveredGroup
from consensus.transport.interface import Envelope

THREE = Configuration((1, 2, 3))
EMPTY = Status(
    role=Role.FOLLOWER,
    term=1,
    leader=0,
    vote=0,
    first_index=1,
    last_index=0,
    last_term=0,
    flushed_index=0,
    commit_index=0,
    applied_index=0,
    snapshot_index=0,
    ready_to_serve=False,
    match={},
    configuration=THREE,
    configuration_index=0,
)


def log_of(*terms: int) -> tuple[Entry, ...]:
    return tuple(Entry(term, index + 1, EntryKind.NORMAL, b"", term) for index, term in enumerate(terms))


@dataclass
class Picture:
    """What a replica shows."""

    replica: int
    entries: tuple[Entry, ...] = ()
    now: Status = EMPTY
    looks: int = field(default=0)

    def show(self, *entries: Entry, **changes: object) -> Picture:
        self.entries = entries
        last = entries[-1] if entries else None
        self.now = replace(
            self.now,
            last_index=last.index if last else 0,
            last_term=last.term if last else 0,
            **changes,  # type: ignore[arg-type]
        )
        return self

    def marks(self) -> tuple[object, ...]:
        self.looks += 1
        return (self.looks,)

    def status(self) -> Status:
        return self.now

    def entry(self, index: int) -> Entry | None:
        return next((entry for entry in self.entries if entry.index == index), None)


class World:
    def __init__(self) -> None:
        self.replicas = {replica: Picture(replica) for replica in (1, 2, 3)}
        self.disks = {replica: DurableLog(None) for replica in (1, 2, 3)}
        self.lives = Lives(
            Trace(Scheduler()),
            elected=lambda group: None,
            peer=lambda group, replica: self.replicas.get(replica),
            durable=lambda group, replica: self.disks.get(replica),
            configured=lambda group, index, term, configuration, committed: None,
            overruled=lambda group, is_overruled: None,
        )

    def sync(self, replica: int, *entries: Entry) -> None:
        self.disks[replica].synced(GroupAppend(group=1, entries=entries))

    def look(self, replica: int, *entries: Entry, **changes: object) -> None:
        self.lives.look(1, self.replicas[replica].show(*entries, **changes))


def two_leaders(world: World) -> None:
    world.look(1, role=Role.LEADER)
    world.look(2, role=Role.LEADER)


def one_entry_two_contents(world: World) -> None:
    world.look(1, *log_of(1))
    world.look(2, replace(log_of(1)[0], crc=99))


def a_leader_without_what_is_committed(world: World) -> None:
    for replica in (1, 2):
        world.sync(replica, *log_of(1))
    world.look(1, *log_of(1), commit_index=1, flushed_index=1)
    world.look(3, term=2, role=Role.LEADER)


def two_commits_at_one_index(world: World) -> None:
    world.look(1, *log_of(1), commit_index=1)
    world.look(2, *log_of(2), term=2, commit_index=1)


def a_term_that_falls(world: World) -> None:
    world.look(1, term=3)
    world.look(1, term=2)


def a_commit_that_falls(world: World) -> None:
    world.look(1, *log_of(1), commit_index=1)
    world.look(1, *log_of(1), commit_index=0)


def flushed_by_its_own_word_alone(world: World) -> None:
    world.look(1, *log_of(1), flushed_index=1)


def a_match_that_the_peer_does_not_hold(world: World) -> None:
    world.look(1, *log_of(1), role=Role.LEADER, match={2: 1})


def committed_without_a_durable_quorum(world: World) -> None:
    world.sync(1, *log_of(1))
    world.look(1, *log_of(1), role=Role.LEADER, commit_index=1, flushed_index=1)


def configurations_that_may_miss_each_other(world: World) -> None:
    other = Configuration((3, 4, 5))
    entry = Entry(1, 1, EntryKind.CONFIGURATION, encode_configuration(other), 1)
    world.look(1)
    world.look(1, entry, configuration=other, configuration_index=1)


def configuration(index: int, term: int) -> Entry:
    payload = encode_configuration(replace(THREE, learners=(4,)))
    return Entry(term, index, EntryKind.CONFIGURATION, payload, 7)


def a_configuration_that_waits_until_it_is_applied(world: World) -> None:
    world.look(1, configuration(1, 1))


def a_configuration_that_outlives_its_entry(world: World) -> None:
    world.look(1, *log_of(1), configuration_index=2)


def a_configuration_before_an_entry_of_the_own_term(world: World) -> None:
    for replica in (1, 2):
        world.sync(replica, *log_of(1))
        world.replicas[replica].show(*log_of(1))
    world.look(1, *log_of(1), commit_index=1, flushed_index=1)
    leads = {"term": 2, "role": Role.LEADER, "configuration": replace(THREE, learners=(4,)), "configuration_index": 3}
    world.look(1, *log_of(1, 2), configuration(3, 2), **leads)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (two_leaders, "leads term 1, as replica 1 did"),
        (one_entry_two_contents, "not what others hold|does not follow"),
        (a_leader_without_what_is_committed, "leads term 2 without entry 1"),
        (two_commits_at_one_index, "elsewhere it is"),
        (a_term_that_falls, "term fell from 3 to 2"),
        (a_commit_that_falls, "commit index fell from 1 to 0"),
        (flushed_by_its_own_word_alone, "does not hold it durably"),
        (a_match_that_the_peer_does_not_hold, "held by replica 2, which does not"),
        (committed_without_a_durable_quorum, "only \\[1\\] of"),
        (configurations_that_may_miss_each_other, "quorums"),
        (a_configuration_that_waits_until_it_is_applied, "holds a later one at 1"),
        (a_configuration_that_outlives_its_entry, "its log ends at 1"),
        (a_configuration_before_an_entry_of_the_own_term, "has committed 1 of term 1 only"),
    ],
)
def test_a_broken_promise_is_seen_at_the_event(broken: Callable[[World], None], said: str) -> None:
    with pytest.raises(Violated, match=said):
        broken(World())


def test_pictures_that_break_nothing_pass() -> None:
    world = World()
    world.look(1, term=2, role=Role.LEADER)
    for replica in (1, 2):
        world.sync(replica, *log_of(2))
        world.replicas[2].show(*log_of(2), term=2)
    world.look(2, *log_of(2), term=2, flushed_index=1)
    world.look(1, *log_of(2), flushed_index=1, commit_index=1, match={2: 1})


# --- what replicas say ----------------------------------------------------------------------------------------------


def said(*messages: VoteRequest | VoteResponse | AppendResponse) -> Speech:
    speech = Speech()
    speech.sent([Envelope(1, message) for message in messages])
    return speech


def test_two_votes_in_a_term_are_heard() -> None:
    votes = [VoteResponse(sender=1, to=to, term=4, incarnation=1, pre=False, granted=True) for to in (2, 3)]
    with pytest.raises(Violated, match="voted for 2 and 3 in term 4"):
        said(*votes)


def test_a_life_that_forgot_its_term_its_vote_or_its_entries_is_noticed() -> None:
    vote = VoteResponse(sender=1, to=2, term=4, incarnation=1, pre=False, granted=True)
    answer = AppendResponse(sender=1, to=2, term=4, incarnation=1, rejected=False, match_index=2)
    for hard_state, entries, broken in (
        (HardState(3, 0, 0), log_of(1, 4), "came back in term 3"),
        (HardState(4, 3, 0), log_of(1, 4), "came back as 3"),
        (HardState(4, 2, 0), log_of(1), "acknowledged entry 2"),
    ):
        with pytest.raises(Violated, match=broken):
            said(vote, answer).recovered(1, 1, found(hard_state, entries))
    said(vote, answer).recovered(1, 1, found(HardState(4, 2, 0), log_of(1, 4)))


def found(hard_state: HardState, entries: Sequence[Entry]) -> RecoveredGroup:
    return RecoveredGroup(hard_state=hard_state, entries=tuple(entries), snapshot=None)


# --- state machines, requests, clients ------------------------------------------------------------------------------


def command(index: int, client: int = 1, sequence: int = 1) -> Entry:
    payload = encode(client, sequence, b"")
    return Entry(1, index, EntryKind.NORMAL, payload, sum(payload))


def test_state_machines_that_part_are_seen() -> None:
    witness = Witness(1)
    machines = [WitnessedMachine(Ledger(), witness, node) for node in (1, 2)]
    machines[0].apply(command(1))
    machines[0].apply(command(2, sequence=2))
    with pytest.raises(Violated, match="another replica applied"):
        machines[1].apply(command(1, client=9))
    machines[1].apply(command(1))
    with pytest.raises(Violated, match="after entry 1"):
        machines[1].apply(command(1))
    with pytest.raises(Violated, match="another replica applied 2 there"):
        machines[1].apply(command(3, sequence=2))


def test_a_state_that_goes_back_is_seen() -> None:
    witness = Witness(1)
    old, new = WitnessedMachine(Ledger(), witness, 1), WitnessedMachine(Ledger(), witness, 2)
    snapshot = b"".join(bytes(chunk) for chunk in old.snapshot())
    new.apply(command(1))
    with pytest.raises(Violated, match="goes back from entry 1 to 0"):
        new.restore(iter((memoryview(snapshot),)))


def test_a_second_outcome_and_a_missing_one_are_seen() -> None:
    requests = Requests()
    done: Callable[[object], None] = requests.begin(1, "proposal", lambda _: None)
    assert requests.open() == ["node 1 owes the outcome of a proposal"]
    done("first")
    assert requests.open() == []
    with pytest.raises(Violated, match="a second outcome"):
        done("second")


def test_lost_moved_doubled_and_misordered_lines_are_seen() -> None:
    ledger = Ledger()
    for index, (client, sequence) in enumerate(((1, 1), (2, 1))):
        ledger.apply(command(index + 1, client, sequence))

    def judge(*lines: Line) -> None:
        history = History(1)
        for line in lines:
            history.promised(line)
        history.check(ledger)

    judge(Line(1, 1, 0, 0, 5), Line(2, 1, 1, 6, 9))
    for lines, broken in (
        ((Line(3, 1, 2, 0, 5),), "was acknowledged"),
        ((Line(1, 1, 1, 0, 5),), "was acknowledged"),
        ((Line(2, 1, 1, 0, 5), Line(1, 1, 0, 6, 9)), "stands before one"),
    ):
        with pytest.raises(Violated, match=broken):
            judge(*lines)
    ledger.lines.append((1, 1))
    with pytest.raises(Violated, match="twice"):
        judge()


# --- arithmetic and memory ------------------------------------------------------------------------------------------


def test_the_arithmetic_of_quorums_can_say_no() -> None:
    joint = Configuration((3, 4, 5), outgoing=(1, 2, 3))
    assert quorums_meet(THREE, joint)
    assert quorums_meet(joint, Configuration((3, 4, 5)))
    assert not quorums_meet(THREE, Configuration((3, 4, 5)))
    assert is_quorum(joint, (1, 3, 4))
    assert not is_quorum(joint, (3, 4, 5))
    assert minority_at_most(THREE, (1,))
    assert not minority_at_most(THREE, (1, 2))


@pytest.mark.parametrize(
    ("what", "bound"),
    [
        ("held_messages", "held_messages_max"),
        ("applied_bytes", "unloaded_after_bytes"),
        ("uncommitted_bytes", "uncommitted_bytes_max"),
    ],
)
def test_memory_beyond_a_bound_is_seen(what: str, bound: str) -> None:
    from consensus.core.raft import RaftCore
    from consensus.simulation.bounds import problem_of

    options = small_runtime_options()
    assert not problem_of(handle_of(RaftCore), options)
    beyond = getattr(options.raft, bound) + options.proposal_bytes_max + 1
    assert f"{beyond} " in problem_of(handle_of(RaftCore, **{what: beyond}), options)


def handle_of(  # type: ignore[no-untyped-def]
    kind: type, held_messages: int = 0, applied_bytes: int = 0, uncommitted_bytes: int = 0
):
    """A handle whose core says that it holds so much."""
    held, applied, uncommitted = held_messages, applied_bytes, uncommitted_bytes

    class Full(kind):  # type: ignore[misc,valid-type]
        held_messages = held

        def __init__(self) -> None:
            """No core at all inside."""

        def applied_bytes(self) -> int:
            return applied

        def uncommitted_bytes(self) -> int:
            return uncommitted

    class Handle:
        core = Full()

    return Handle()
