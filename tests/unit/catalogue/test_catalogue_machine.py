"""Group 0's state machine: what each command comes to, and what a command sent again does not do."""

import hashlib
from collections.abc import Callable

import pytest

from consensus.core.interface import Entry, EntryKind
from paramserver.catalogue import commands, sessions
from paramserver.catalogue.commands import (
    ClaimInitialization,
    ClaimRank,
    ClientCommand,
    Command,
    CreateModel,
    Envelope,
    ExpireLease,
    ModelOpened,
    OpenSession,
    RegisterNode,
    ReleaseRank,
    ShardCreated,
)
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.sessions import ANSWERS_MAX, Answer
from paramserver.catalogue.state import Node
from paramserver.wire.checksum import crc32c
from paramserver.wire.errors import Reason
from paramserver.wire.spec import ModelSpec, Sgd, TensorSpec

GROUPS = (1, 2, 3)
BLOCK_BYTES = 4096


def spec(name: str = "digits", *, blocks: int = 6, ranks: int = 2, rate: float = 0.5) -> ModelSpec:
    tensor = TensorSpec("w", (blocks * BLOCK_BYTES // 4,))
    return ModelSpec(name, (tensor,), Sgd(rate), ranks, block_bytes=BLOCK_BYTES)


class Driver:
    """Applies commands as the log would, with sessions and sequence numbers."""

    def __init__(self, machine: CatalogueMachine | None = None) -> None:
        self.machine = machine or CatalogueMachine(GROUPS)
        self.index = 0
        self.sequence = 0

    def raw(self, payload: bytes) -> Answer:
        self.index += 1
        return self.machine.apply(Entry(1, self.index, EntryKind.NORMAL, payload, crc32c(payload)))

    def server(self, command: Command) -> Answer:
        return self.raw(commands.encode(Envelope(command)))

    def session(self, name: str) -> int:
        client = hashlib.sha256(name.encode()).digest()[:16]
        return self.server(OpenSession(client, secret(name), name)).value

    def client(self, name: str, session: int, command: ClientCommand, sequence: int | None = None) -> Answer:
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        return self.raw(commands.encode(Envelope(command, session, sequence, secret(name))))


def secret(name: str) -> bytes:
    return hashlib.sha256(f"secret of {name}".encode()).digest()


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def anna(driver: Driver) -> Callable[..., Answer]:
    session = driver.session("anna")
    return lambda command, sequence=None: driver.client("anna", session, command, sequence)


@pytest.fixture
def bert(driver: Driver) -> Callable[..., Answer]:
    session = driver.session("bert")
    return lambda command, sequence=None: driver.client("bert", session, command, sequence)


Client = Callable[..., Answer]


# --- sessions


def test_the_same_client_gets_the_same_session(driver: Driver) -> None:
    assert driver.session("anna") == driver.session("anna") == 1
    assert driver.session("bert") == 2


def test_a_client_id_with_another_secret_is_refused(driver: Driver) -> None:
    driver.session("anna")
    client = hashlib.sha256(b"anna").digest()[:16]
    assert driver.server(OpenSession(client, secret("mallory"), "anna")).reason == Reason.WRONG_SECRET


def test_a_command_with_anothers_session_is_refused(driver: Driver, anna: Client) -> None:
    answer = driver.client("mallory", 1, CreateModel(spec()))
    assert answer.reason == Reason.WRONG_SECRET
    assert not driver.machine.models


def test_an_unknown_session_is_refused_never_created(driver: Driver) -> None:
    assert driver.client("anna", 99, CreateModel(spec())).reason == Reason.UNKNOWN_SESSION
    assert driver.machine.session(99) is None


def test_a_client_command_needs_a_session(driver: Driver) -> None:
    assert driver.server(CreateModel(spec())).reason == Reason.UNKNOWN_SESSION


def test_a_command_sent_again_has_no_second_effect(driver: Driver, anna: Client) -> None:
    anna(CreateModel(spec()))
    first = anna(ClaimRank(1, 1, 0), sequence=100)
    again = anna(ClaimRank(1, 1, 0), sequence=100)
    assert first == again
    assert driver.machine.models[1].leases[0].epoch == 1
    assert driver.machine.models[1].view.number == first.view


def test_a_lower_sequence_that_was_never_seen_still_counts(driver: Driver, anna: Client) -> None:
    anna(CreateModel(spec()), sequence=5)
    assert anna(ClaimRank(1, 1, 0), sequence=4).ok  # overtaken on its way, not a repetition


def test_a_sequence_whose_answer_is_forgotten_is_refused(driver: Driver, anna: Client) -> None:
    anna(CreateModel(spec()), sequence=1)
    for sequence in range(2, ANSWERS_MAX + 2):
        anna(ClaimRank(1, 1, 0), sequence=sequence)
    view = driver.machine.models[1].view
    answer = anna(ClaimRank(1, 1, 0), sequence=1)
    assert answer.reason == Reason.OUT_OF_ORDER
    assert driver.machine.models[1].view == view


def test_the_least_recently_used_session_without_a_lease_is_forgotten() -> None:
    machine = CatalogueMachine(GROUPS)
    machine._sessions = sessions.Sessions(sessions_max=2)
    driver = Driver(machine)
    first, second = driver.session("first"), driver.session("second")
    driver.client("first", first, CreateModel(spec()))
    driver.client("first", first, ClaimRank(1, 1, 0))
    driver.client("second", second, ClaimInitialization(9, 1))
    third = driver.session("third")
    assert machine.session(first) is not None, "it holds a rank"
    assert machine.session(second) is None
    assert third == 3
    assert driver.session("second") == 4, "an id is never given twice"


# --- models


def test_creating_again_with_the_same_spec_gives_the_same_id(anna: Client, bert: Client) -> None:
    assert anna(CreateModel(spec())).value == 1
    assert bert(CreateModel(spec())).value == 1
    assert bert(CreateModel(spec("other"))).value == 2


@pytest.mark.parametrize("other", [spec(rate=0.25), spec(blocks=7), spec(ranks=3)])
def test_creating_again_with_another_spec_is_refused(anna: Client, other: ModelSpec) -> None:
    anna(CreateModel(spec()))
    answer = anna(CreateModel(other))
    assert (answer.reason, answer.value) == (Reason.SPEC_MISMATCH, 1)


def test_a_bad_spec_is_refused_in_apply_too(driver: Driver, anna: Client) -> None:
    assert anna(CreateModel(spec("a/b"))).reason == Reason.INVALID
    assert not driver.machine.models


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 7, 100])
def test_shards_cover_all_blocks_once_in_order(driver: Driver, anna: Client, blocks: int) -> None:
    anna(CreateModel(spec(blocks=blocks)))
    shards = driver.machine.models[1].shards
    covered = [block for shard in shards for block in range(shard.first_block, shard.first_block + shard.blocks)]
    assert covered == list(range(blocks))
    sizes = [shard.blocks for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert len({shard.group for shard in shards}) == len(shards) == min(blocks, 3)


def test_small_models_start_in_different_groups(driver: Driver, anna: Client) -> None:
    for name in ("a", "b", "c"):
        anna(CreateModel(spec(name, blocks=1)))
    assert sorted(model.shards[0].group for model in driver.machine.models.values()) == [1, 2, 3]


def test_a_model_is_complete_when_every_group_has_its_shard(driver: Driver, anna: Client) -> None:
    anna(CreateModel(spec()))
    for group in GROUPS:
        assert not driver.machine.models[1].complete
        assert driver.server(ShardCreated(1, 1, group)).ok
    assert driver.machine.models[1].complete
    assert driver.server(ShardCreated(1, 1, 9)).reason == Reason.NOT_FOUND


# --- initial values


def test_one_client_at_a_time_sends_initial_values(driver: Driver, anna: Client, bert: Client) -> None:
    anna(CreateModel(spec()))
    assert anna(ClaimInitialization(1, 1)).value == 1
    refused = bert(ClaimInitialization(1, 1))
    assert (refused.ok, refused.holder) == (False, 1)
    assert anna(ClaimInitialization(1, 1)).value == 2, "a restarted client goes on under a higher epoch"


def test_after_its_lease_expired_another_client_sends_them(driver: Driver, anna: Client, bert: Client) -> None:
    anna(CreateModel(spec()))
    anna(ClaimInitialization(1, 1))
    assert driver.server(ExpireLease(1, 0, 1, initialization=True)).ok
    assert bert(ClaimInitialization(1, 1)).value == 2
    assert anna(ModelOpened(1, 1, 1)).reason == Reason.STALE_LEASE
    assert bert(ModelOpened(1, 1, 2)).ok


def test_expiry_of_the_initialization_lease_is_refused_when_its_epoch_moved_on(driver: Driver, anna: Client) -> None:
    anna(CreateModel(spec()))
    anna(ClaimInitialization(1, 1))
    anna(ClaimInitialization(1, 1))
    assert driver.server(ExpireLease(1, 0, 1, initialization=True)).reason == Reason.STALE_LEASE
    assert driver.machine.models[1].initialization.session == 1


def test_an_open_model_gives_no_initialization_lease(driver: Driver, anna: Client, bert: Client) -> None:
    anna(CreateModel(spec()))
    anna(ClaimInitialization(1, 1))
    anna(ModelOpened(1, 1, 1))
    assert driver.machine.models[1].open
    for client in (anna, bert):
        assert client(ClaimInitialization(1, 1)).reason == Reason.ALREADY_OPEN
    assert anna(ModelOpened(1, 1, 1)).ok, "told twice"
    assert anna(ModelOpened(1, 1, 2)).reason == Reason.ALREADY_OPEN


def test_only_the_holder_of_the_lease_opens(anna: Client, bert: Client) -> None:
    anna(CreateModel(spec()))
    anna(ClaimInitialization(1, 1))
    assert bert(ModelOpened(1, 1, 1)).reason == Reason.STALE_LEASE


# --- ranks and views


def test_the_first_view_holds_all_ranks_and_none_is_taken(driver: Driver, anna: Client) -> None:
    anna(CreateModel(spec(ranks=3)))
    model = driver.machine.models[1]
    assert (model.view.number, model.view.lease_epochs) == (1, (0, 0, 0))


def test_each_claim_is_a_new_view(driver: Driver, anna: Client, bert: Client) -> None:
    anna(CreateModel(spec()))
    assert (anna(ClaimRank(1, 1, 0)).view, bert(ClaimRank(1, 1, 1)).view) == (2, 3)
    assert driver.machine.models[1].view.lease_epochs == (1, 1)


def test_the_holder_takes_its_rank_back_at_once_under_a_higher_epoch(driver: Driver, anna: Client) -> None:
    anna(CreateModel(spec()))
    anna(ClaimRank(1, 1, 0))
    again = anna(ClaimRank(1, 1, 0))
    assert (again.value, again.view) == (2, 3)
    assert driver.machine.models[1].view.lease_epochs == (2, 0)


def test_a_held_rank_names_its_holder(anna: Client, bert: Client) -> None:
    anna(CreateModel(spec()))
    anna(ClaimRank(1, 1, 0))
    refused = bert(ClaimRank(1, 1, 0))
    assert (refused.reason, refused.holder) == (Reason.RANK_TAKEN, 1)


def test_an_expired_rank_goes_to_another_under_a_higher_epoch(driver: Driver, anna: Client, bert: Client) -> None:
    anna(CreateModel(spec()))
    anna(ClaimRank(1, 1, 0))
    assert driver.server(ExpireLease(1, 0, 1)).ok
    assert driver.machine.models[1].view.number == 2, "the step goes on waiting for the rank: no new view"
    assert bert(ClaimRank(1, 1, 0)).value == 2
    assert anna(ClaimRank(1, 1, 0)).reason == Reason.RANK_TAKEN


def test_expire_is_refused_when_the_epoch_moved_on(driver: Driver, anna: Client) -> None:
    anna(CreateModel(spec()))
    anna(ClaimRank(1, 1, 0))
    anna(ClaimRank(1, 1, 0))
    assert driver.server(ExpireLease(1, 0, 1)).reason == Reason.STALE_LEASE
    assert driver.machine.models[1].leases[0].held


def test_a_released_rank_is_free(anna: Client, bert: Client) -> None:
    anna(CreateModel(spec()))
    anna(ClaimRank(1, 1, 0))
    assert bert(ReleaseRank(1, 0, 1)).reason == Reason.STALE_LEASE
    assert anna(ReleaseRank(1, 0, 1)).ok
    assert bert(ClaimRank(1, 1, 0)).value == 2


@pytest.mark.parametrize("rank", [2, 63, 2**31])
def test_a_rank_outside_the_model_is_refused(anna: Client, rank: int) -> None:
    anna(CreateModel(spec()))
    assert anna(ClaimRank(1, 1, rank)).reason == Reason.INVALID


@pytest.mark.parametrize("command", [ClaimRank(7, 1, 0), ClaimInitialization(7, 1), ModelOpened(7, 1, 1)])
def test_an_unknown_model_is_named(anna: Client, command: ClientCommand) -> None:
    answer = anna(command)
    assert (answer.reason, "7" in answer.message) == (Reason.NOT_FOUND, True)


def test_another_generation_is_refused(anna: Client) -> None:
    anna(CreateModel(spec()))
    assert anna(ClaimRank(1, 2, 0)).reason == Reason.STALE_EPOCH


# --- the log's bytes and snapshots


@pytest.mark.parametrize("payload", [b"", b"\x20", b"\x20\x02abc", b"\x20\x01\xff\xff\xff", b"\x20\x01", b"garbage"])
def test_bytes_that_are_no_command_are_refused_without_effect(driver: Driver, payload: bytes) -> None:
    assert driver.raw(payload).reason == Reason.INVALID


def full(driver: Driver) -> CatalogueMachine:
    session = driver.session("anna")
    for name in ("a", "b"):
        driver.client("anna", session, CreateModel(spec(name)))
    driver.client("anna", session, ClaimInitialization(1, 1))
    driver.client("anna", session, ModelOpened(1, 1, 1))
    driver.client("anna", session, ClaimInitialization(2, 1))
    driver.client("anna", session, ClaimRank(1, 1, 1))
    driver.client("anna", session, ClaimRank(1, 1, 7))
    driver.server(ShardCreated(1, 1, 2))
    driver.server(RegisterNode(Node(1, "127.0.0.1:7001", b"u" * 16)))
    driver.session("bert")
    return driver.machine


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1 << 20])
def test_a_snapshot_holds_all_that_apply_looks_at(driver: Driver, chunk_bytes: int) -> None:
    machine = full(driver)
    raw = b"".join(bytes(chunk) for chunk in machine.snapshot())
    copy = CatalogueMachine(GROUPS)
    copy.restore(memoryview(raw[i : i + chunk_bytes]) for i in range(0, len(raw), chunk_bytes))
    assert (copy.models, copy.nodes) == (machine.models, machine.nodes)
    assert list(copy._sessions) == list(machine._sessions)
    assert b"".join(bytes(chunk) for chunk in copy.snapshot()) == raw
    # And it goes on alike: the same commands, new and repeated, give the same answers.
    other = Driver(copy)
    other.sequence = driver.sequence
    for one in (driver, other):
        assert one.client("anna", 1, ClaimRank(1, 1, 1), sequence=6) == one.client("anna", 1, ClaimRank(1, 1, 1), 6)
    for one in (driver, other):
        one.client("anna", 1, CreateModel(spec("c")), sequence=50)
        one.session("carl")
    assert copy.models == machine.models
    assert list(copy._sessions) == list(machine._sessions)


def test_restoring_replaces_everything(driver: Driver) -> None:
    machine = full(driver)
    empty = CatalogueMachine(GROUPS)
    machine.restore(memoryview(bytes(chunk)) for chunk in empty.snapshot())
    assert not machine.models
    assert not machine.nodes
    assert machine.size_bytes() == 0
    assert driver.session("zoe") == 1
