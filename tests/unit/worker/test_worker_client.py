"""connect, models, ranks, sessions: what is refused, and with which words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import paramserver
from paramserver.wire.errors import Reason, Refusal
from tests.unit.worker.fake import CLUSTER, FakeCluster
from tests.unit.worker.helpers import BLOCKS, SHAPES, applied_once, client_of, gradients, initial, model_of, until
from worker import client as client_module
from worker import errors
from worker.client import connect, parse_servers
from worker.network import Method


def test_what_a_client_knows() -> None:
    cluster = FakeCluster()
    with client_of(cluster, name="trainer") as client:
        assert client.cluster == CLUSTER.hex()
        assert client.nodes == cluster.addresses
        assert {group: route.node for group, route in client.leaders().items()} == {0: 1, 1: 1, 2: 2, 3: 3}
        cluster.kill(3)
        assert list(client.unreachable()) == [3]


@pytest.mark.parametrize(
    "servers",
    ["", ",", "localhost", "localhost:", ":7001", "localhost:0", "localhost:70000", "::1:7001", "a b:1", "x\n:1", []],
)
def test_a_bad_endpoint_is_named(servers: str | list[str]) -> None:
    """FAULTS bad input 23."""
    with pytest.raises(errors.InvalidArgument, match="host:port"):
        parse_servers(servers)


def test_good_endpoints() -> None:
    assert parse_servers(" a:1, b:2,a:1 ") == ("a:1", "b:2")
    assert parse_servers(["[::1]:7001"]) == ("[::1]:7001",)


def test_an_unreachable_cluster_is_unavailable_with_the_reason() -> None:
    cluster = FakeCluster()
    for node in (1, 2, 3):
        cluster.kill(node)
    with pytest.raises(errors.Unavailable, match="node1:7000: connection refused"):
        client_of(cluster, timeout=0.3)


def test_one_server_that_answers_is_enough() -> None:
    cluster = FakeCluster()
    cluster.kill(1)
    cluster.kill(2)
    with client_of(cluster) as client:
        assert client.nodes == cluster.addresses


def test_calls_after_close_are_refused() -> None:
    cluster = FakeCluster()
    client = client_of(cluster)
    model = model_of(client)
    model.close()
    model.close()
    with pytest.raises(errors.Closed, match="model 'demo' is closed"):
        model.pull()
    assert not cluster.models[1].ranks[0].held
    again = model_of(client)
    client.close()
    client.close()
    for call in (again.pull, again.wait, again.buffer, lambda: again.push_pull({}), lambda: model_of(client)):
        with pytest.raises(errors.Closed):
            call()


def test_closing_ends_a_step_in_flight() -> None:
    cluster = FakeCluster()
    cluster.hold = True
    client = client_of(cluster)
    model = model_of(client)
    future = model.push_pull(gradients(0))
    client.close()
    with pytest.raises(errors.OutcomeUnknown, match="step 0 was given up: the model was closed while") as caught:
        future.result(1)
    assert (caught.value.step, caught.value.blocks) == (0, tuple(range(BLOCKS)))


def test_a_forked_child_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(FakeCluster()) as client:
        pid = os.getpid()
        with monkeypatch.context() as patch:
            patch.setattr(client_module.os, "getpid", lambda: pid + 1)
            with pytest.raises(errors.Forked, match="fork"):
                model_of(client)


# --- models


def test_a_model_is_initialized_once_and_never_reset() -> None:
    """RULES M3: the second client's values are not even made."""
    cluster = FakeCluster()
    with client_of(cluster) as one:
        model_of(one).push_pull(gradients(0)).result()
    with client_of(cluster) as other:
        called = []
        model = model_of(other, initial=lambda: called.append(1))
        assert called == []
        assert model.step == 1
        assert model.push_pull(gradients(1)).result().version == 2
    assert applied_once(cluster, 2)


def test_initialization_survives_a_new_leader() -> None:
    cluster = FakeCluster()
    cluster.refuse = [Refusal(Reason.NOT_READY, "catching up"), Refusal(Reason.NOT_LEADER, "who knows", group=1)]
    with client_of(cluster) as client:
        model = model_of(client)
        assert np.array_equal(model.pull()["a"], initial()["a"])


def test_an_initialization_lease_that_is_lost_is_claimed_anew() -> None:
    cluster = FakeCluster()
    cluster.refuse = [Refusal(Reason.STALE_LEASE, "another client initialises this model now")]
    with client_of(cluster) as client:
        model_of(client)
        assert cluster.models[1].init_epoch == 2


def test_without_initial_values_it_waits_for_those_of_others() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        with pytest.raises(errors.DeadlineExceeded, match="no values yet"):
            model_of(client, initial=None, timeout=0.2)


def test_another_spec_under_the_same_name_is_a_mismatch() -> None:
    """FAULTS bad input 7."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model_of(client)
        with pytest.raises(errors.SpecMismatch, match="another spec"):
            model_of(client, ranks=2)
        with pytest.raises(errors.SpecMismatch):
            model_of(client, optimizer=paramserver.adam())


def test_who_does_not_ask_for_a_size_of_blocks_takes_the_one_there_is() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        made = model_of(client)
        assert model_of(client, rank=None, block_bytes=None).spec == made.spec
        with pytest.raises(errors.SpecMismatch):
            model_of(client, rank=None, block_bytes=2 * made.spec.block_bytes)
        with pytest.raises(errors.SpecMismatch):
            model_of(client, rank=None, block_bytes=None, ranks=2)


def test_opening_by_name_alone() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        with pytest.raises(errors.NotFound, match="no model"):
            client.model("nothing")
        model_of(client)
        assert client.model("demo").spec.optimizer == paramserver.sgd(0.5)
        with pytest.raises(errors.InvalidArgument, match="pass `tensors`"):
            client.model("demo", optimizer=paramserver.sgd(1))
        with pytest.raises(errors.InvalidArgument, match="no optimizer"):
            client.model("other", {"a": (1,)})


def test_arrays_stand_for_their_shapes() -> None:
    with client_of(FakeCluster()) as client:
        model = client.model("arrays", initial(), optimizer=paramserver.sgd(0.5), initial=initial)
        assert {tensor.name: tensor.shape for tensor in model.spec.tensors} == SHAPES


def test_a_bad_spec_is_refused_before_it_is_sent() -> None:
    with client_of(FakeCluster()) as client:
        with pytest.raises(errors.InvalidArgument) as caught:
            client.model("../x", {"a": (0,)}, optimizer=paramserver.sgd(float("nan")), block_bytes=5)
        for field in ("name", "shape", "learning_rate", "block_bytes"):
            assert field in caught.value.cause


# --- gradients


def test_wrong_gradients_are_refused_before_anything_is_sent() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.frames.clear()
        good = gradients(0)
        for wrong, words in (
            ({}, "nothing"),
            ({**good, "d": np.zeros(1, np.float32)}, "unknown"),
            ({**good, "b": np.zeros(5, np.float32)}, r"shape \(5,\)"),
            ({**good, "b": np.zeros(3000, np.int32)}, "int32"),
        ):
            with pytest.raises(errors.InvalidArgument, match=words):
                model.push_pull(wrong)
        with pytest.raises(errors.FailedPrecondition, match="the next step is 0"):
            model.push_pull(good, step=1)
        assert cluster.frames == []
        assert model.push_pull(good, step=0).result().version == 1


def test_a_gradient_that_is_not_finite_is_rejected_by_default() -> None:
    """FAULTS bad input 5, RULES S10: decided for the whole gradient before its first frame."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.frames.clear()
        bad = gradients(0)
        bad["b"][2999] = np.inf
        with pytest.raises(errors.NonFinite, match="inf in tensor 'b' at element 2999") as caught:
            model.push_pull(bad)
        assert (caught.value.tensor, caught.value.step) == ("b", 0)
        assert cluster.frames == []
        assert model.push_pull(gradients(0)).result().version == 1


def test_by_policy_a_step_is_skipped_in_every_block_or_none() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, non_finite=paramserver.NonFinite.SKIP)
        bad = gradients(0)
        bad["a"][0, 0] = np.nan
        cluster.payloads.clear()
        after = model.push_pull(bad).result()
        assert after.version == 1
        assert all(np.array_equal(after[name], initial()[name]) for name in SHAPES)
        assert [payload for _, _, payload in cluster.payloads] == [b""] * BLOCKS


# --- ranks and sessions


def test_a_rank_that_is_held_is_refused_with_holder_and_lease() -> None:
    """FAULTS bad input 13."""
    cluster = FakeCluster()
    with client_of(cluster) as one, client_of(cluster) as other:
        model_of(one, rank=0, ranks=2)
        with pytest.raises(errors.RankTaken) as caught:
            model_of(other, rank=0, ranks=2)
        assert "session 1" in caught.value.holder
        assert caught.value.lease_ends_ms == 7000
        assert model_of(other, rank=1, ranks=2).rank == 1


def test_a_worker_started_again_with_its_session_takes_its_rank_back(tmp_path: Path) -> None:
    """RULES S7, S9: kill -9 in the middle of a step, then the same command."""
    cluster = FakeCluster()
    path = tmp_path / "w.session"
    killed = client_of(cluster, session_file=path)
    model = model_of(killed)
    model.push_pull(gradients(0)).result()
    cluster.hold = True
    model.push_pull(gradients(1))
    until(lambda: len(cluster.frames) == 3 * BLOCKS)
    # Half of the blocks are applied, then the process is gone: nothing is released, the lock goes with it.
    fake = cluster.models[1]
    with cluster.lock:
        for block in (0, 1):
            cluster.apply(fake, block, fake.sums.pop(block))
        cluster.hold = False
    killed._file.close()
    killed._loop.stop()
    with client_of(cluster, session_file=path) as again:
        model = model_of(again)
        assert fake.ranks[0].epoch == 2
        assert model.step == 1
        weights = model.pull()
        assert weights.versions == (1,) * BLOCKS
        assert np.array_equal(weights["b"], initial()["b"] - np.float32(0.5) * gradients(0)["b"])
        assert model.push_pull(gradients(1)).result().version == 2
    assert applied_once(cluster, 2)


def test_sequence_numbers_rise_over_restarts(tmp_path: Path) -> None:
    """RULES A4: a number used before would be answered with what was answered then."""
    cluster = FakeCluster()
    path = tmp_path / "w.session"
    for start in (1, 2):
        with client_of(cluster, session_file=path) as client:
            model_of(client)
            assert client.session_file == str(path)
        numbers = sorted(sequence >> 32 for _, sequence in cluster.answers)
        assert numbers[-1] == start
    assert len({session for session, _ in cluster.answers}) == 1


def test_a_session_file_may_be_a_function_of_the_cluster(tmp_path: Path) -> None:
    with client_of(FakeCluster(), session_file=lambda cluster: tmp_path / cluster) as client:
        assert client.session_file == str(tmp_path / CLUSTER.hex())


def test_a_command_that_is_sent_again_keeps_its_sequence_number() -> None:
    """The answer of the first attempt is lost with group 0's leader; the claim happens once."""
    cluster = FakeCluster()
    taken = []
    original = cluster._command

    def lose_first_answer(method: Method, request: object) -> object:
        answer = original(method, request)
        if method is Method.CLAIM_RANK:
            taken.append(request.sequence)
            cluster.elect(0, 2)
            cluster.answers[(request.session, request.sequence)] = answer
            raise _Lost
        return answer

    def call(address: str, method: Method, request: object) -> object:
        try:
            return FakeCluster.call(cluster, address, method, request)
        except _Lost:
            raise Refusal(Reason.NOT_READY, "Socket closed", code="UNAVAILABLE") from None

    cluster._command = lose_first_answer
    cluster.call = call
    with client_of(cluster) as client:
        assert model_of(client).rank == 0
        assert len(taken) == 1
        assert cluster.models[1].ranks[0].epoch == 1


class _Lost(Exception):
    pass


def test_leases_are_renewed() -> None:
    cluster = FakeCluster()
    cluster.lease_ms = 100
    with client_of(cluster) as client:
        model_of(client)
        until(lambda: sum(method is Method.RENEW_LEASE for _, method in cluster.calls) >= 3)


def test_the_front_door_is_lazy_and_complete() -> None:
    for name in paramserver.__all__:
        assert getattr(paramserver, name) is not None
    assert paramserver.connect is connect
    with pytest.raises(AttributeError):
        _ = paramserver.nothing


def test_absent_ranks_are_named() -> None:
    with client_of(FakeCluster()) as client:
        assert model_of(client, ranks=3).absent_ranks().result() == [1, 2]


def test_a_module_of_the_users_that_shadows_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("")
    root = str(Path(paramserver.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", "import paramserver\nparamserver.connect"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"the module 'worker' found at {tmp_path}/worker.py is not ours; rename that file" in ended.stderr
