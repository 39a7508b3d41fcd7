"""push_pull and pull against a fake cluster: the plain path, and every fault that a worker must live through."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from paramserver.wire.errors import Reason, Refusal
from tests.unit.worker.fake import LEARNING_RATE, FakeCluster, unavailable
from tests.unit.worker.helpers import BLOCKS, SHAPES, applied_once, client_of, gradients, initial, model_of, until
from worker import errors
from worker.network import Method


def test_a_step_gives_the_weights_after_it() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        assert model.step == 0
        before = model.pull()
        assert all(np.array_equal(before[name], initial()[name]) for name in SHAPES)
        after = model.push_pull(gradients(0)).result()
        assert model.step == 1
        assert after.version == 1
        assert after.versions == (1,) * BLOCKS
        for name in SHAPES:
            assert np.array_equal(after[name], initial()[name] - LEARNING_RATE * gradients(0)[name])
        assert model.pull().digest() == after.digest() != before.digest()


def test_blocks_of_a_group_go_out_in_ascending_order() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.frames.clear()
        for step in range(3):
            model.push_pull(gradients(step)).result()
        for group, first, count in cluster.models[1].shards:
            sent = [(block, step) for _, block, step in cluster.frames if cluster.models[1].group_of(block) == group]
            assert sent == [(block, step) for step in range(3) for block in range(first, first + count)]


def test_two_ranks_wait_for_each_other_and_see_the_same_bits() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as one, client_of(cluster) as other:
        first = model_of(one, rank=0, ranks=2)
        second = model_of(other, rank=1, ranks=2)
        for step in range(5):
            future = first.push_pull(gradients(step, 0))
            assert not future.done()
            theirs = second.push_pull(gradients(step, 1)).result()
            assert future.result().digest() == theirs.digest()
        assert applied_once(cluster, 5)


def test_the_claim_of_another_rank_changes_the_view_and_nothing_is_lost() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as one, client_of(cluster) as other:
        first = model_of(one, rank=0, ranks=2)
        future = first.push_pull(gradients(0, 0))
        until(lambda: len([frame for frame in cluster.frames if frame[0] == 0 and frame[1] >= 0]) >= 2 * BLOCKS)
        # The view of the claim drops the open sums and ends the streams (RULES S8): all of it is sent again.
        second = model_of(other, rank=1, ranks=2)
        second.push_pull(gradients(0, 1)).result()
        assert future.result().version == 1
        assert applied_once(cluster, 1)


def test_a_leader_that_dies_before_it_answers_costs_neither_an_update_nor_a_second_one() -> None:
    """HAZARDS 31: applied, but the answer is lost; what is sent again is a duplicate and carries the weights."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        model.push_pull(gradients(0)).result()
        cluster.swallow_replies = BLOCKS
        future = model.push_pull(gradients(1))
        until(lambda: len(cluster.applied) == 2 * BLOCKS)
        for node in (1, 2):
            cluster.kill(node)
        for group in (0, 1, 2):
            cluster.elect(group, 3)
        cluster.elect(3, 3)
        after = future.result()
        assert after.version == 2
        assert applied_once(cluster, 2)
        expected = initial()["b"] - LEARNING_RATE * gradients(0)["b"] - LEARNING_RATE * gradients(1)["b"]
        assert np.array_equal(after["b"], expected)


def test_only_what_was_not_acknowledged_is_sent_again() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.frames.clear()
        cluster.swallow_replies = 1
        future = model.push_pull(gradients(0))
        until(lambda: len(cluster.applied) == BLOCKS)
        until(lambda: len(_left(model)) == 1)
        silent = _left(model)
        cluster.frames.clear()
        group = cluster.models[1].group_of(silent[0])
        cluster.elect(group, group % 3 + 1)
        assert future.result().version == 1
        assert [block for _, block, _ in cluster.frames] == silent


def _parts(model: object) -> list:
    return list(model._engine._flight.parts.values())


def _left(model: object) -> list[int]:
    return [block for part in _parts(model) for block in part.unacknowledged]


def test_the_same_bytes_are_sent_again_whatever_the_caller_does_with_its_arrays() -> None:
    """RULES S12: the caller may overwrite its gradient at once."""
    cluster = FakeCluster()
    cluster.hold = True
    with client_of(cluster) as client:
        model = model_of(client)
        mine = gradients(0)
        cluster.payloads.clear()
        future = model.push_pull(mine)
        until(lambda: len(cluster.payloads) == BLOCKS)
        for array in mine.values():
            array[:] = np.nan
        cluster.hold = False
        for group in (1, 2, 3):
            cluster.elect(group, group % 3 + 1)
        future.result()
        sent: dict[int, set[bytes]] = {}
        for block, _, payload in cluster.payloads:
            sent.setdefault(block, set()).add(payload)
        assert {block: len(payloads) for block, payloads in sent.items()} == dict.fromkeys(range(BLOCKS), 1)


def test_a_silent_leader_is_left_as_soon_as_another_announces_itself() -> None:
    """RULES C7: its stream does not break, and nobody waits for it."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.hold = True
        future = model.push_pull(gradients(0))
        until(lambda: len(cluster.frames) == 2 * BLOCKS)
        cluster.hold = False
        for group in (1, 2, 3):
            cluster.elect(group, group % 3 + 1, end_streams=False)
        assert future.result(timeout=2).version == 1


def test_a_refusal_that_names_the_leader_is_followed() -> None:
    """No announcement: only the redirect says where to go."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        for group in (1, 2, 3):
            cluster.elect(group, group % 3 + 1, announce=False)
        assert model.push_pull(gradients(0)).result().version == 1


def test_a_failover_costs_milliseconds_not_a_poll() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        costs = []
        for step in range(6):
            leader = cluster.leaders[1][0]
            cluster.kill(leader)
            future = model.push_pull(gradients(step))
            until(lambda: client.leaders()[1].suspect)
            began = time.monotonic()
            for group in [one for one, (node, _) in cluster.leaders.items() if node == leader]:
                cluster.elect(group, leader % 3 + 1)
            future.result()
            costs.append(time.monotonic() - began)
            cluster.restart(leader)
        assert sorted(costs)[len(costs) // 2] < 0.05
        assert applied_once(cluster, 6)


def test_without_a_quorum_it_says_why_it_waits_and_goes_on_by_itself() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        for node in (2, 3):
            cluster.kill(node)
        future = model.push_pull(gradients(0))
        with pytest.raises(errors.DeadlineExceeded) as caught:
            future.result(timeout=0.3)
        assert not future.done()
        assert "groups 2, 3 have no leader" in caught.value.why
        assert "nodes 2, 3 unreachable" in caught.value.why
        cluster.restart(2)
        for group in (2, 3):
            cluster.elect(group, 2)
        assert future.result().version == 1
        assert model.why() == "node 3 unreachable"


def test_a_step_whose_budget_ended_rests_until_wait_takes_it_up() -> None:
    """HAZARDS 32: nothing is retried for a caller that has gone; FAULTS bad input 15: the deadline ends the call."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.kill(3)
        future = model.push_pull(gradients(0), timeout=0.2)
        with pytest.raises(errors.DeadlineExceeded, match="group 3 has no leader"):
            future.result()
        assert future.done()
        assert isinstance(future.exception(), errors.DeadlineExceeded)
        with pytest.raises(errors.FailedPrecondition, match="still in flight"):
            model.push_pull(gradients(1))
        cluster.frames.clear()
        cluster.elect(3, 1)
        until(lambda: any(hello.group == 3 and hello.view for hello in cluster.hellos[-1:]))
        assert cluster.frames == []
        assert model.wait().version == 1
        assert model.step == 1
        assert model.push_pull(gradients(1)).result().version == 2
        assert applied_once(cluster, 2)


def test_nothing_of_the_next_step_is_sent_before_every_block_of_this_one_is_seen() -> None:
    """RULES S6."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.swallow_replies = 1
        future = model.push_pull(gradients(0))
        until(lambda: len(cluster.applied) == BLOCKS and len(_left(model)) == 1)
        with pytest.raises(errors.FailedPrecondition, match="still in flight"):
            model.push_pull(gradients(1))
        assert all(step == 0 for _, _, step in cluster.frames)
        cluster.elect(cluster.models[1].group_of(_left(model)[0]), 2)
        future.result()


def test_acknowledgements_without_weights_are_followed_by_a_pull() -> None:
    cluster = FakeCluster()
    cluster.without_weights = True
    with client_of(cluster) as client:
        model = model_of(client)
        after = model.push_pull(gradients(0)).result()
        assert np.array_equal(after["a"], initial()["a"] - LEARNING_RATE * gradients(0)["a"])


def test_a_damaged_answer_is_asked_for_again() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.corrupt_replies = 2
        after = model.push_pull(gradients(0)).result()
        assert np.array_equal(after["a"], initial()["a"] - LEARNING_RATE * gradients(0)["a"])
        assert applied_once(cluster, 1)


@pytest.mark.parametrize(
    "refusal",
    [
        unavailable(),
        Refusal(Reason.NOT_READY, "the no-op is not applied yet"),
        Refusal(Reason.DISK_FULL, "no space", retry_after_ms=20),
        Refusal(Reason.SHUTTING_DOWN, "shutting down"),
        Refusal(Reason.NOT_OPEN, "not open yet"),
        Refusal(Reason.VIEW_CHANGED, "an older view than ours", view=1),
        Refusal(Reason.INTERNAL, "stream reset"),
    ],
)
def test_a_refusal_that_may_pass_is_tried_again(refusal: Refusal) -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        model.push_pull(gradients(0)).result()
        cluster.refuse = [refusal] * 3
        cluster.elect(1, 2)
        assert model.push_pull(gradients(1)).result().version == 2
        assert cluster.refuse == []


def test_a_leader_with_a_full_disk_is_no_missing_leader() -> None:
    """Seen with a full disk: the reason changed to and fro between the refusal and "has no leader"."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        model.push_pull(gradients(0)).result()
        cluster.refuse = [Refusal(Reason.DISK_FULL, "no space", retry_after_ms=20)] * 10_000
        cluster.elect(1, 2)
        future = model.push_pull(gradients(1))
        with pytest.raises(errors.DeadlineExceeded) as caught:
            future.result(timeout=0.3)
        assert "no space" in caught.value.why
        assert "no leader" not in caught.value.why
        cluster.refuse = []
        assert future.result().version == 2


def test_a_final_refusal_ends_the_step_with_its_reason() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.refuse = [Refusal(Reason.NON_FINITE, "rank 0 sent NaN in tensor 'a' at step 0")]
        cluster.elect(1, 2)
        with pytest.raises(errors.NonFinite, match="tensor 'a'"):
            model.push_pull(gradients(0)).result()


def test_a_rank_that_another_process_took_over_ends_with_rank_taken() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, ranks=2)
        future = model.push_pull(gradients(0))
        until(lambda: len(cluster.frames) >= 2 * BLOCKS)
        with cluster.lock:
            taken = cluster.models[1].ranks[0]
            taken.epoch, taken.session = taken.epoch + 1, 99
            cluster.set_view(cluster.models[1])
        with pytest.raises(errors.RankTaken, match="taken over by session 99"):
            future.result()
        with pytest.raises(errors.RankTaken):
            model.pull()


def test_a_lease_that_ended_is_taken_again_in_the_middle_of_a_step() -> None:
    """The process stood still too long; nobody else took the rank."""
    cluster = FakeCluster()
    cluster.lease_ms = 100
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.hold = True
        future = model.push_pull(gradients(0))
        until(lambda: len(cluster.frames) >= 2 * BLOCKS)
        with cluster.lock:
            cluster.models[1].ranks[0].held = False
            cluster.hold = False
        until(lambda: cluster.models[1].ranks[0].epoch == 2)
        assert future.result().version == 1
        assert applied_once(cluster, 1)


def test_a_block_far_beyond_the_step_is_an_error_not_an_acknowledgement() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        with cluster.lock:
            cluster.models[1].versions[4] = 7
        with pytest.raises(errors.StepPassed, match="block 4 is at version 7"):
            model.push_pull(gradients(0)).result()


def test_futures_may_be_waited_for_elsewhere() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        called = threading.Event()
        future = model.push_pull(gradients(0))
        future.add_done_callback(lambda _: called.set())
        assert called.wait(5)
        assert future.done()
        assert future.exception() is None
        assert model.wait().version == 1


def test_pulls_by_version() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        for step in range(3):
            model.push_pull(gradients(step)).result()
        assert model.pull().version == 3
        assert model.pull(version=2).version == 2
        assert model.pull(min_version=1).version == 3
        with pytest.raises(errors.Gone, match="version 1 of block"):
            model.pull(version=1)
        with pytest.raises(errors.DeadlineExceeded):
            model.pull(version=4, timeout=0.2)
        with pytest.raises(errors.InvalidArgument):
            model.pull(version=-1)


def test_a_pull_goes_to_another_replica_when_the_leader_is_gone() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.kill(2)
        assert model.pull().version == 0


def test_a_handle_without_a_rank_pulls_one_version_of_all_blocks() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client, client_of(cluster) as reader:
        model = model_of(client)
        model.push_pull(gradients(0)).result()
        watching = model_of(reader, rank=None)
        with cluster.lock:
            behind = cluster.models[1]
            behind.versions[0], behind.weights[0], behind.before = 0, behind.before[0], {}
        with pytest.raises(errors.DeadlineExceeded):
            watching.pull(timeout=0.2)
        assert watching.pull(min_version=0).versions == (0, 1, 1, 1, 1)
        with pytest.raises(errors.FailedPrecondition, match="without a rank"):
            watching.push_pull(gradients(1))


def test_an_own_buffer_is_sent_without_a_copy_and_out_is_filled() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        mine, out = model.buffer(), model.buffer()
        mine.flat[:] = 2
        after = model.push_pull(mine, out=out).result()
        assert after is out
        assert np.array_equal(out["b"], initial()["b"] - LEARNING_RATE * np.float32(2))
        with pytest.raises(errors.InvalidArgument, match="own buffer"):
            model.push_pull(mine, out=mine)


def test_group_0_may_move_while_a_model_is_opened() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        cluster.elect(0, 2, announce=False)
        model = model_of(client)
        assert model.push_pull(gradients(0)).result().version == 1
        assert cluster.calls[-1] != ("node1:7000", Method.CLAIM_RANK)
