"""Bad input at a running server (FAULTS, bad input 1-4, 7, 8, 12-15): each gets the status and names the field, and the
server stays up, with nothing changed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from paramserver.lab.cluster import Cluster, ServerOptions
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.v1 import paramserver_pb2_grpc as services
from tests.process.raw_client import BLOCK_ELEMENTS, Client, block_of, detail, spec

BLOCKS = 6
UNARY = {
    "Catalogue": [
        "DescribeCluster",
        "OpenSession",
        "CreateModel",
        "DescribeModel",
        "ClaimInitialization",
        "OpenModel",
        "ClaimRank",
        "RenewLease",
        "ReleaseRank",
        "SetLearningRate",
        "PinModel",
        "ReleasePin",
        "ListModels",
    ],
    "Admin": ["Status"],
    "Internal": ["Execute"],
}
SERVER_STREAMS = {"Watch": ["Announcements"], "Data": ["Pull"]}
STREAMS = {"Data": ["PushPull", "Initialize"]}
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node is a whole cluster here: leader of everything."""
    options = ServerOptions(flags=("--segment-bytes", str(1 << 20)))
    with Cluster(1, folder=tmp_path_factory.mktemp("bad-input"), options=options) as running:
        running.await_leaders(range(2))
        yield running


@pytest.fixture(scope="module")
def channel(cluster: Cluster) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(cluster.addresses[1]) as opened:
        yield opened


@pytest.fixture(scope="module")
def anna(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster, "anna") as client:
        yield client.open_session()


@pytest.fixture(scope="module")
def model(anna: Client) -> pb.ModelDescription:
    """One rank, six blocks, all zeros, open."""
    created = anna.create(spec("model", blocks=BLOCKS, ranks=1))
    return anna.initialise(created, np.zeros(BLOCKS * BLOCK_ELEMENTS, np.float32))


@pytest.fixture(autouse=True)
def still_up(cluster: Cluster, channel: grpc.Channel) -> Iterator[None]:
    yield
    stub: Any = services.AdminStub(channel)
    answer = stub.Status(pb.StatusRequest(blocks=True), timeout=5)
    assert not answer.alarms
    assert cluster.servers[1].running
    assert "Traceback" not in cluster.servers[1].output()


def refused(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert "Traceback" not in (caught.value.details() or "")
    return caught.value


# --- 1: random bytes, truncated messages, unknown methods


def rubbish() -> list[bytes]:
    """None of them is any message: an endless tag, a length beyond the end, an end in the middle of a number."""
    return [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x08\x80", random.Random(1).randbytes(100)[:50] + b"\xff" * 11]


@pytest.mark.parametrize("method", [f"{service}/{name}" for service, names in UNARY.items() for name in names])
def test_bytes_that_are_no_message(channel: grpc.Channel, method: str) -> None:
    call = channel.unary_unary(f"/paramserver.v1.{method}")
    for data in rubbish():
        error = refused(lambda data=data: call(data, timeout=5))
        assert (error.code(), detail(error).field) == (Code.INVALID_ARGUMENT, "request")


@pytest.mark.parametrize("method", [f"{service}/{name}" for service, names in UNARY.items() for name in names])
def test_random_bytes(channel: grpc.Channel, method: str) -> None:
    """Some are a message with fields nobody knows; what they lack is refused, or they ask for nothing special."""
    call, source = channel.unary_unary(f"/paramserver.v1.{method}"), random.Random(method)
    sizes = [0, 1, 2, 3, 5, 8, 100, 10_000]
    codes = {call.future(source.randbytes(size), timeout=5).code() for size in sizes}
    assert codes <= {Code.OK, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.NOT_FOUND}


@pytest.mark.parametrize("method", [f"{service}/{name}" for service, names in SERVER_STREAMS.items() for name in names])
def test_bytes_that_are_no_message_to_a_stream_of_answers(channel: grpc.Channel, method: str) -> None:
    call = channel.unary_stream(f"/paramserver.v1.{method}")
    for data in rubbish():
        assert refused(lambda data=data: list(call(data, timeout=5))).code() is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("method", [f"{service}/{name}" for service, names in STREAMS.items() for name in names])
def test_frames_that_are_no_message(channel: grpc.Channel, method: str) -> None:
    call = channel.stream_stream(f"/paramserver.v1.{method}")
    for data in [b"", *rubbish()]:
        assert refused(lambda data=data: list(call(iter([data]), timeout=5))).code() is Code.INVALID_ARGUMENT


def test_a_stream_without_a_frame(channel: grpc.Channel) -> None:
    call = channel.stream_stream("/paramserver.v1.Data/PushPull")
    assert detail(refused(lambda: list(call(iter([]), timeout=5)))).field == "hello"


def test_an_unknown_method(channel: grpc.Channel) -> None:
    for method in ("/paramserver.v1.Catalogue/DropEverything", "/nobody.Home/Is"):
        assert refused(lambda method=method: channel.unary_unary(method)(b"", timeout=5)).code() is Code.UNIMPLEMENTED


# --- 2: too large


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_over_the_limit_and_a_gzip_bomb(channel: grpc.Channel, compression: grpc.Compression) -> None:
    call = channel.unary_unary("/paramserver.v1.Catalogue/CreateModel")
    error = refused(lambda: call(bytes(32 << 20), timeout=10, compression=compression))
    assert error.code() is Code.RESOURCE_EXHAUSTED


def test_a_payload_larger_than_any_block(anna: Client, model: pb.ModelDescription) -> None:
    stream = pushing(anna, model)
    stream.push(0, 0, np.zeros((3 << 20) // 4, np.float32))
    error = refused(stream.receive)
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert detail(error).field == "payload"


# --- 3 and 4: lengths, shapes, types


def pushing(anna: Client, opened: pb.ModelDescription, **fields: Any) -> Any:
    """An open push stream of rank 0; one that is refused, with `fields` of the hello changed."""
    claim = anna.claim_rank(opened, 0)
    wanted = {"rank": 0, "lease_epoch": claim.lease_epoch, "view": claim.view.number, **fields}
    stream = anna.stream(opened, 1, node=1, **wanted)
    if not fields:
        assert stream.receive().header.status == pb.STREAM_OPEN
    return stream


@pytest.mark.parametrize("elements", [0, 1, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS + 1])
def test_a_payload_of_another_length_than_the_block(anna: Client, model: pb.ModelDescription, elements: int) -> None:
    stream = pushing(anna, model)
    stream.push(0, 0, np.zeros(elements, np.float32))
    error = refused(stream.receive)
    assert error.code() is Code.INVALID_ARGUMENT
    assert str(BLOCK_ELEMENTS * 4) in error.details()
    assert str(elements * 4) in error.details()


def test_a_payload_with_another_checksum(anna: Client, model: pb.ModelDescription) -> None:
    stream = pushing(anna, model)
    stream.push(0, 0, np.zeros(BLOCK_ELEMENTS, np.float32), crc=12345)
    error = refused(stream.receive)
    assert (error.code(), detail(error).reason) == (Code.INVALID_ARGUMENT, "CHECKSUM")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ([-1], pb.FLOAT32),
        ([0], pb.FLOAT32),
        ([3, 0, 2], pb.FLOAT32),
        ([2**62, 2**62], pb.FLOAT32),
        ([2**40], pb.FLOAT32),
        ([1] * 33, pb.FLOAT32),
        ([4], pb.DTYPE_UNSPECIFIED),
        ([4], 99),
    ],
)
def test_impossible_tensors(anna: Client, shape: list[int], dtype: int) -> None:
    wanted = spec("impossible")
    del wanted.tensors[:]
    wanted.tensors.add(name="w", shape=shape, dtype=dtype)
    error = refused(lambda: anna.create(wanted))
    assert error.code() is Code.INVALID_ARGUMENT
    assert detail(error).field.startswith("tensors[0].")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ranks", 0),
        ("ranks", 65),
        ("block_bytes", 100),
        ("block_bytes", 2**31),
        ("reduction", 9),
        ("non_finite", 9),
        ("log_codec", 4),
    ],
)
def test_impossible_models(anna: Client, field: str, value: int) -> None:
    wanted = spec("impossible")
    setattr(wanted, field, value)
    error = refused(lambda: anna.create(wanted))
    assert (error.code(), detail(error).field) == (Code.INVALID_ARGUMENT, field)


def test_all_problems_of_a_spec_are_named_at_once(anna: Client) -> None:
    wanted = spec("a/b", ranks=65)
    wanted.optimizer.sgd.learning_rate = float("nan")
    error = refused(lambda: anna.create(wanted))
    assert all(field in error.details() for field in ("name", "ranks", "learning_rate"))


# --- 7 and 8: names


def test_unknown_models_and_blocks(anna: Client, model: pb.ModelDescription) -> None:
    for request in (pb.DescribeModelRequest(name="nobody"), pb.DescribeModelRequest(model=999)):
        assert refused(lambda request=request: anna.call("DescribeModel", request)).code() is Code.NOT_FOUND
    unknown = pb.ModelDescription(model=999, generation=1)
    assert refused(lambda: anna.claim_rank(unknown, 0)).code() is Code.NOT_FOUND
    stream = pushing(anna, model)
    stream.push(BLOCKS, 0, np.zeros(BLOCK_ELEMENTS, np.float32))
    error = refused(stream.receive)
    assert (error.code(), detail(error).field) == (Code.NOT_FOUND, "block")


@pytest.mark.parametrize("change", ["shape", "optimizer", "ranks", "log_codec"])
def test_create_again_with_another_spec(anna: Client, model: pb.ModelDescription, change: str) -> None:
    wanted = pb.ModelSpec()
    wanted.CopyFrom(model.spec)
    if change == "shape":
        wanted.tensors[0].shape[:] = [5]
    elif change == "optimizer":
        wanted.optimizer.adam.MergeFrom(pb.Adam(learning_rate=0.25, beta1=0.9, beta2=0.99, epsilon=1e-8))
    elif change == "log_codec":
        wanted.log_codec = pb.BF16
    else:
        wanted.ranks = 7
    error = refused(lambda: anna.create(wanted))
    assert error.code() is Code.ALREADY_EXISTS
    told = detail(error)
    if change == "log_codec":
        assert ("FP32" in told.expected, "BF16" in told.received) == (True, True)
    assert told.expected
    assert told.received
    assert told.expected != told.received


@pytest.mark.parametrize(
    "name", ["", "x" * 201, "a\nb", "\x1b[31mred", "../etc/passwd", "/abs", "a\\b", ".hidden", " a"]
)
def test_bad_names(anna: Client, name: str) -> None:
    error = refused(lambda: anna.create(spec(name)))
    assert (error.code(), detail(error).field) == (Code.INVALID_ARGUMENT, "name")
    assert "\x1b" not in error.details()
    wanted = spec("fine")
    wanted.tensors[0].name = name
    assert detail(refused(lambda: anna.create(wanted))).field == "tensors[0].name"


# --- 12: steps


def test_a_step_far_ahead(anna: Client, model: pb.ModelDescription) -> None:
    stream = pushing(anna, model)
    stream.push(0, 2, np.zeros(BLOCK_ELEMENTS, np.float32))
    error = refused(stream.receive)
    assert (error.code(), detail(error).reason) == (Code.FAILED_PRECONDITION, "FAR_AHEAD")
    assert detail(error).version == 0


def test_a_step_beyond_all_numbers(anna: Client, model: pb.ModelDescription) -> None:
    stream = pushing(anna, model)
    stream.push(0, 2**63, np.zeros(BLOCK_ELEMENTS, np.float32))
    assert detail(refused(stream.receive)).field == "step"


def test_a_step_behind_is_a_duplicate_with_the_current_version(anna: Client) -> None:
    created = anna.create(spec("behind", blocks=1, ranks=1))
    opened = anna.initialise(created, np.zeros(BLOCK_ELEMENTS, np.float32))
    stream = pushing(anna, opened)
    for step in (0, 1, 2):
        stream.push(0, step, np.ones(BLOCK_ELEMENTS, np.float32))
        assert stream.receive().header.version == step + 1
    stream.push(0, 1, np.ones(BLOCK_ELEMENTS, np.float32))
    assert (reply := stream.receive()).header.status == pb.DUPLICATE
    assert reply.header.version == 3
    stream.cancel()


# --- 13 and 14: ranks, leases, epochs


def test_two_workers_claiming_one_rank(cluster: Cluster, anna: Client, model: pb.ModelDescription) -> None:
    anna.claim_rank(model, 0)
    with Client(cluster, "bert") as bert:
        error = refused(lambda: bert.open_session().claim_rank(model, 0))
    assert error.code() is Code.FAILED_PRECONDITION
    assert detail(error).holder.startswith("anna")
    assert detail(error).lease_ends_ms > 0


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"placement_epoch": 9}, Code.FAILED_PRECONDITION, "placement_epoch"),
        ({"lease_epoch": 10**6}, Code.FAILED_PRECONDITION, "hello.lease_epoch"),
        ({"rank": 63}, Code.INVALID_ARGUMENT, "hello.rank"),
        ({"generation": 9}, Code.NOT_FOUND, "hello.model"),
        ({"model": 999}, Code.NOT_FOUND, "hello.model"),
        ({"group": 9}, Code.NOT_FOUND, "hello.group"),
        ({"cluster": b"c" * 16}, Code.FAILED_PRECONDITION, "hello.cluster"),
        ({"cluster": b"c"}, Code.INVALID_ARGUMENT, "hello.cluster"),
        ({"protocol": 7}, Code.INVALID_ARGUMENT, "hello.protocol"),
        ({"weights_codec": 9}, Code.INVALID_ARGUMENT, "hello.weights_codec"),
    ],
)
def test_hellos_of_another_time_or_place(
    anna: Client, model: pb.ModelDescription, fields: dict[str, Any], code: grpc.StatusCode, field: str
) -> None:
    error = refused(pushing(anna, model, **fields).receive)
    assert (error.code(), detail(error).field) == (code, field)
    if field == "placement_epoch":
        assert detail(error).epoch == 1


def test_another_clients_session(cluster: Cluster, anna: Client, model: pb.ModelDescription) -> None:
    with Client(cluster, "mallory") as mallory:
        mallory.session = anna.session
        error = refused(lambda: mallory.claim_rank(model, 0))
        assert error.code() is Code.PERMISSION_DENIED
        mallory.session = 10**6
        assert detail(refused(lambda: mallory.claim_rank(model, 0))).reason == "UNKNOWN_SESSION"
        mallory.secret = b"short"
        assert detail(refused(lambda: mallory.claim_rank(model, 0))).field == "secret"


# --- 15: pulls


def test_a_version_that_never_comes(anna: Client, model: pb.ModelDescription) -> None:
    begin = time.monotonic()
    error = refused(lambda: anna.pull(model, node=1, version=10**9, timeout_s=0.3))
    assert error.code() is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("blocks", [[1, 0], [2, 2], [0, 1, 1]])
def test_blocks_unsorted_or_repeated(anna: Client, channel: grpc.Channel, model: Any, blocks: list[int]) -> None:
    request = pulling(anna, model, blocks=blocks, version=0)
    error = refused(lambda: list(services.DataStub(channel).Pull(request, timeout=5)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert detail(error).field.startswith("blocks[")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, Code.INVALID_ARGUMENT),
        ({"version": 2**63}, Code.INVALID_ARGUMENT),
        ({"version": 0, "codec": 9}, Code.INVALID_ARGUMENT),
        ({"version": 0, "if_newer_than": 0}, Code.INVALID_ARGUMENT),
        ({"min_version": 0, "if_newer_than": 2**63}, Code.INVALID_ARGUMENT),
        ({"version": 0, "model": 999}, Code.NOT_FOUND),
        ({"version": 0, "group": 9}, Code.NOT_FOUND),
        ({"version": 0, "group": 0}, Code.NOT_FOUND),
        ({"version": 0, "blocks": [BLOCKS]}, Code.NOT_FOUND),
        ({"version": 0, "placement_epoch": 2}, Code.FAILED_PRECONDITION),
        ({"version": 0, "cluster": b"another cluster!"}, Code.FAILED_PRECONDITION),
    ],
)
def test_bad_pulls(anna: Client, channel: grpc.Channel, model: Any, fields: dict[str, Any], code: Code) -> None:
    request = pulling(anna, model, **fields)
    assert refused(lambda: list(services.DataStub(channel).Pull(request, timeout=5))).code() is code


def pulling(anna: Client, opened: pb.ModelDescription, **fields: Any) -> pb.PullRequest:
    wanted = {
        "cluster": anna.cluster_id,
        "group": 1,
        "model": opened.model,
        "generation": opened.generation,
        "placement_epoch": opened.placement_epoch,
        **fields,
    }
    return pb.PullRequest(**wanted)


# --- and afterwards


def test_nothing_of_all_this_changed_the_model(anna: Client, model: pb.ModelDescription) -> None:
    np.testing.assert_array_equal(anna.pull(model, node=1, version=0), np.zeros(BLOCKS * BLOCK_ELEMENTS, np.float32))
    stream = pushing(anna, model)
    ones = np.ones(BLOCKS * BLOCK_ELEMENTS, np.float32)
    for block in range(BLOCKS):
        stream.push(block, 0, block_of(ones, block))
        assert stream.receive().header.version == 1
    stream.cancel()


def test_only_small_commands_are_executed_for_other_nodes(anna: Client, channel: grpc.Channel) -> None:
    stub: Any = services.InternalStub(channel)
    for command in (b"", b"\x01\x01" + bytes(200), b"\x10\x02"):
        request = pb.ExecuteRequest(cluster=anna.cluster_id, group=1, command=command)
        assert refused(lambda request=request: stub.Execute(request, timeout=5)).code() is Code.INVALID_ARGUMENT
    stranger = pb.ExecuteRequest(cluster=b"c" * 16, group=1, command=b"\x10\x01")
    assert refused(lambda: stub.Execute(stranger, timeout=5)).code() is Code.FAILED_PRECONDITION
