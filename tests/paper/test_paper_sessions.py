"""One test a rule of sessions: section 6.3 of "Consensus: Bridging Theory and Practice" (Ongaro, 2014), "Implementing
linearizable semantics". The state machines are the real ones, group 0's catalogue and a shard, behind real cores.

Two rules are kept in another way: a client does not name the lowest answer that it lacks, the machine keeps a bounded
number of answers and refuses what lies below them; and pushes need no table, for a block's version is the number of the
step that it takes next."""

from collections.abc import Callable, Iterable

import pytest

from consensus.core.interface import EntryKind
from paramserver.catalogue import commands, sessions
from paramserver.catalogue.commands import ClaimRank, ClientCommand, CreateModel, Envelope, OpenSession
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.sessions import ANSWERS_MAX, Answer
from paramserver.shard.machine import ShardMachine
from paramserver.shard.results import Duplicate, Updated
from paramserver.wire.checksum import crc32c
from paramserver.wire.errors import Reason
from tests.unit.catalogue.test_catalogue_machine import GROUPS, Driver, secret, spec
from tests.unit.core.harness import AppendRequest, Cluster, Host
from tests.unit.shard.kit import as_entry, model_spec, opening_commands, update_command

CLAIM = ClaimRank(1, 1, 0)


def request(command: ClientCommand, sequence: int, *, name: str = "anna", session: int = 1) -> bytes:
    return commands.encode(Envelope(command, session, sequence, secret(name)))


def opening(name: str = "anna") -> bytes:
    return commands.encode(Envelope(OpenSession(name.encode().ljust(16), secret(name), name)))


class Replicated:
    """A state machine on each of three cores. `answers` holds, of each replica, what its machine said to the commands
    of its log, in order."""

    def __init__(self, machine: Callable[[], CatalogueMachine | ShardMachine]) -> None:
        self.cluster = Cluster.of_size(3)
        self.make = machine
        self.answers: dict[int, list[object]] = {}
        self.cluster.elect()

    def propose(self, *payloads: bytes | memoryview, at: Host | None = None, settle: bool = True) -> Host:
        host = at or self.cluster.leader()
        for payload in payloads:
            host.core.propose(payload, crc32c(payload))
        if settle:
            self.cluster.run(200)
        return host

    def machines(self) -> Iterable[CatalogueMachine | ShardMachine]:
        """Of the replicas that are up, each having applied its committed log from the beginning."""
        for host in self.cluster.up():
            machine = self.make()
            applied = [one for one in host.applied if one.kind is EntryKind.NORMAL]
            self.answers[host.replica] = [machine.apply(one) for one in applied]
            yield machine

    def lose_the_leader_before_it_answers(self, payload: bytes | memoryview) -> None:
        """The command is in the log of one follower; the leader dies with its answer, another one leads."""
        leader = self.cluster.leader()
        receiver = next(host for host in self.cluster.up() if host is not leader)
        left = self.propose(payload, at=leader, settle=False).drain()
        for message in left:
            if isinstance(message, AppendRequest) and message.to == receiver.replica:
                self.cluster.deliver(message)
        receiver.persist()
        receiver.sent.clear()
        self.cluster.down.add(leader.replica)
        self.cluster.run(2000)


def catalogue() -> CatalogueMachine:
    return CatalogueMachine(GROUPS)


def test_6_3_a_command_in_the_log_twice_is_executed_once() -> None:
    """ "If the leader crashes after committing the log entry but before responding to the client, the client will retry
    the command with a new leader, causing it to be executed a second time. The solution is for clients to assign unique
    serial numbers to every command." """
    group = Replicated(catalogue)
    group.propose(opening(), request(CreateModel(spec()), 1))
    group.lose_the_leader_before_it_answers(request(CLAIM, 2))
    group.propose(request(CLAIM, 2))
    for machine in group.machines():
        assert isinstance(machine, CatalogueMachine)
        assert machine.models[1].leases[0].epoch == 1
        assert machine.models[1].view.number == 2
    for answers in group.answers.values():
        assert len(answers) == 4, "it stands in the log twice"


def test_6_3_the_state_machine_keeps_the_response_and_gives_it_again() -> None:
    """ "The state machine tracks the latest serial number processed for each client, along with the associated
    response. If it receives a command whose serial number has already been executed, it responds immediately without
    re-executing the request." """
    group = Replicated(catalogue)
    group.propose(opening(), request(CreateModel(spec()), 1), request(CLAIM, 2))
    group.propose(request(CLAIM, 3))
    group.propose(request(CLAIM, 2))
    for machine in group.machines():
        assert isinstance(machine, CatalogueMachine)
        assert machine.models[1].leases[0].epoch == 2
    for answers in group.answers.values():
        _, _, first, second, again = answers
        assert again == first
        assert again != second


def test_6_3_a_client_may_have_several_commands_on_their_way() -> None:
    """The session holds a set of sequence numbers with their responses, not just the latest, so that requests may
    overtake each other."""
    driver = Driver()
    session = driver.session("anna")
    driver.client("anna", session, CreateModel(spec("a")), 1)
    late = driver.client("anna", session, CreateModel(spec("b")), 3)
    overtaken = driver.client("anna", session, CreateModel(spec("c")), 2)
    assert overtaken.ok
    for command, sequence, answer in ((spec("b"), 3, late), (spec("c"), 2, overtaken)):
        assert driver.client("anna", session, CreateModel(command), sequence) == answer
    assert sorted(model.spec.name for model in driver.machine.models.values()) == ["a", "b", "c"]


def test_6_3_responses_are_discarded_within_a_bound_and_never_executed_again() -> None:
    """Responses cannot be kept for ever; what is discarded must not look new."""
    driver = Driver()
    session = driver.session("anna")
    driver.client("anna", session, CreateModel(spec()), 1)
    for sequence in range(2, ANSWERS_MAX + 10):
        driver.client("anna", session, CLAIM, sequence)
        kept = driver.machine.session(session)
        assert kept is not None
        assert len(kept.answers) <= ANSWERS_MAX
    epoch = driver.machine.models[1].leases[0].epoch
    assert driver.client("anna", session, CLAIM, 2).reason == Reason.OUT_OF_ORDER
    assert driver.machine.models[1].leases[0].epoch == epoch


def test_6_3_clients_are_known_by_a_session_that_a_command_opened() -> None:
    """RegisterClient is a command of the log, so every replica gives the same identifier (figure 6.1)."""
    group = Replicated(catalogue)
    group.propose(opening("anna"), opening("bert"), opening("anna"))
    list(group.machines())
    for answers in group.answers.values():
        assert [answer.value for answer in answers if isinstance(answer, Answer)] == [1, 2, 1]


def test_6_3_servers_agree_on_when_to_expire_a_session() -> None:
    """State machines would diverge if each expired sessions on its own. One way that the section names: an upper bound
    on the number of sessions, and the least recently used goes."""

    def bounded() -> CatalogueMachine:
        machine = CatalogueMachine(GROUPS)
        machine._sessions = sessions.Sessions(sessions_max=2)
        return machine

    group = Replicated(bounded)
    group.propose(opening("anna"), opening("bert"), request(CreateModel(spec()), 1), opening("carl"))
    kept = []
    for machine in group.machines():
        assert isinstance(machine, CatalogueMachine)
        kept.append([one.name for one in machine._sessions])
    assert kept == [["anna", "carl"]] * 3, "bert's was used least recently"


def test_6_3_a_client_whose_session_expired_is_told_so() -> None:
    """A client that goes on after its session expired gets an error: taken for a new one, its retry would be executed a
    second time."""
    machine = CatalogueMachine(GROUPS)
    machine._sessions = sessions.Sessions(sessions_max=1)
    driver = Driver(machine)
    anna = driver.session("anna")
    driver.client("anna", anna, CreateModel(spec()), 1)
    bert = driver.session("bert")
    answer = driver.client("anna", anna, CLAIM, 2)
    assert answer.reason == Reason.UNKNOWN_SESSION
    assert not machine.models[1].leases[0].held
    assert bert != anna
    assert driver.session("anna") not in (anna, bert), "an id never comes back"


def test_6_3_a_snapshot_holds_the_sessions() -> None:
    """They are part of the replicated state: a replica that starts from a snapshot must know the same retries."""
    group = Replicated(catalogue)
    group.propose(opening(), request(CreateModel(spec()), 1), request(CLAIM, 2))
    machine = next(iter(group.machines()))
    assert isinstance(machine, CatalogueMachine)
    copy = catalogue()
    copy.restore(memoryview(bytes(chunk)) for chunk in machine.snapshot())
    for one in (machine, copy):
        driver = Driver(one)
        assert driver.client("anna", 1, CLAIM, 2) == group.answers[1][2]
        assert one.models[1].leases[0].epoch == 1


MODEL = model_spec(blocks=1)


@pytest.mark.parametrize("retries", [1, 3])
def test_6_3_a_step_in_the_log_twice_moves_the_weights_once(retries: int) -> None:
    """The same for pushes: the step is the serial number, and the version the block's memory of it (RULES S1)."""
    group = Replicated(lambda: ShardMachine(1))
    group.propose(*(as_entry(command).payload for command in opening_commands(MODEL)))
    push = as_entry(update_command(MODEL, 0, 0)).payload
    group.lose_the_leader_before_it_answers(push)
    for _ in range(retries):
        group.propose(push)
    published = []
    for machine in group.machines():
        assert isinstance(machine, ShardMachine)
        (shard,) = machine.shards.values()
        assert shard.published[0].weights is not None
        published.append((shard.published[0].version, shard.published[0].weights.tobytes()))
    assert [version for version, _ in published] == [1, 1]
    assert len(set(published)) == 1
    for answers in group.answers.values():
        kinds = [type(answer) for answer in answers[-1 - retries :]]
        assert kinds == [Updated] + [Duplicate] * retries
