"""Who may push when, and what becomes of it: leadership, retries, back-pressure (RULES S2, S3, S5, S8)."""

from __future__ import annotations

import numpy as np
import pytest

from paramserver.shard.commands import SetView
from paramserver.shard.options import LeaderOptions
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import PushKind
from paramserver.wire.spec import Reduction
from tests.unit.shard.kit import (
    MODEL,
    Log,
    Node,
    Rank,
    expected_weights,
    model_spec,
    opening_commands,
    same_bits,
    started,
    update_command,
    view_of,
)


def test_a_step_is_summed_committed_applied_and_answered_with_the_new_weights() -> None:
    node, spec = started()
    ranks = [Rank(node, spec, rank) for rank in (0, 1)]
    for rank in ranks:
        assert rank.replies.opened
        rank.push(0, 0, 1, 2)
    assert len(node.log.pending) == 3
    assert ranks[0].replies.frames == [], "nothing is acknowledged before it is applied"
    node.settle()
    for rank in ranks:
        assert rank.replies.seen == [(block, 1, "APPLIED") for block in range(3)]
        for frame in rank.replies.frames:
            assert bytes(frame.payload) == expected_weights(spec, frame.block, 1).tobytes()


def test_weights_travel_only_when_wanted() -> None:
    node, spec = started(ranks=1)
    rank = Rank(node, spec, want_weights=False)
    rank.push(0, 0)
    rank.push(0, 1, want_weights=True)
    node.settle()
    assert [len(frame.payload) > 0 for frame in rank.replies.frames] == [False, True]


def test_weights_in_a_reply_are_not_copied() -> None:
    node, spec = started(ranks=1)
    rank = Rank(node, spec)
    rank.push(0, 0)
    node.settle()
    payload = np.frombuffer(rank.replies.frames[0].payload, np.float32)
    assert np.shares_memory(payload, node.weights(0))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_bits_do_not_depend_on_the_order_of_arrival(order: tuple[int, ...]) -> None:
    node, spec = started(ranks=3)
    ranks = [Rank(node, spec, rank) for rank in range(3)]
    for step in range(3):
        for rank in order:
            ranks[rank].push(step, 0, 1, 2)
        node.settle()
    for block in range(3):
        assert same_bits(node.weights(block), expected_weights(spec, block, 3))


def test_a_sum_is_not_divided_when_the_model_says_sum() -> None:
    node, spec = started(reduction=Reduction.SUM)
    before = node.weights(0).copy()
    for rank in (0, 1):
        Rank(node, spec, rank).push(0, 0, values=np.full(1024, 1.0, np.float32))
    node.settle()
    assert same_bits(node.weights(0), before - np.float32(0.5) * np.float32(2.0))


# --- S2: a new leader judges nothing before the no-op of its term ---------------------------------------------------


def replaced_leader(behind: int) -> tuple[Node, Node, Log]:
    """Node 1 led five steps of a one-rank model; node 2 was elected and still has `behind` entries to apply."""
    spec = model_spec(ranks=1, blocks=1)
    log = Log()
    log.add(*opening_commands(spec), *(update_command(spec, 0, step) for step in range(5)))
    old, new = Node(log, 1), Node(log, 2)
    old.apply()
    new.apply(len(log.committed) - behind)
    new.leader.leader_changed(2, 2)
    return old, new, log


def test_a_new_leader_parks_pushes_until_its_no_op_is_applied() -> None:
    _, new, _ = replaced_leader(behind=3)
    rank = Rank(new, model_spec(ranks=1, blocks=1))
    rank.push(5, 0)
    assert rank.replies.refusal is None, "step 5 is what the group is at; only this replica does not know yet"
    assert rank.held
    assert not rank.replies.opened
    new.apply()
    assert rank.held
    new.leader.leading(2)
    assert rank.replies.opened
    new.settle()
    assert rank.replies.seen == [(0, 6, "APPLIED")]


def test_a_new_leader_answers_what_was_applied_before_with_duplicate_and_weights() -> None:
    old, new, _ = replaced_leader(behind=3)
    rank = Rank(new, model_spec(ranks=1, blocks=1))
    rank.push(4, 0)
    new.lead(2)
    assert rank.replies.seen == [(0, 5, "DUPLICATE")]
    assert bytes(rank.replies.frames[0].payload) == old.weights(0).tobytes()


def test_a_worker_one_step_ahead_of_the_leader_is_parked() -> None:
    """It may have read the version at a follower (S2)."""
    node, spec = started(ranks=1, blocks=1)
    first = Rank(node, spec)
    first.push(0, 0)
    node.log.commit()
    follower = Node(node.log, 2)
    follower.apply()
    assert follower.versions() == [1]
    ahead = Rank(node, spec)
    ahead.push(1, 0)
    assert ahead.held
    assert ahead.replies.refusal is None
    node.apply()
    node.settle()
    assert ahead.replies.seen == [(0, 2, "APPLIED")]


def test_a_follower_names_the_leader() -> None:
    node, spec = started()
    follower = Node(node.log, 2)
    follower.apply()
    follower.leader.leader_changed(1, 4)
    with pytest.raises(Refusal) as caught:
        Rank(follower, spec)
    assert caught.value.reason is Reason.NOT_LEADER
    assert (caught.value.leader_address, caught.value.term) == ("node1:7000", 4)


def test_a_deposed_leader_drops_open_sums_and_ends_streams() -> None:
    node, spec = started()
    rank = Rank(node, spec)
    rank.push(0, 0)
    node.leader.deposed(2)
    assert rank.replies.refusal is not None
    assert rank.replies.refusal.reason is Reason.NOT_LEADER
    node.lead(3)
    other = Rank(node, spec, 1)
    other.push(0, 0)
    assert node.log.pending == [], "a contribution to another tenure must not count"
    Rank(node, spec, 0).push(0, 0)
    assert len(node.log.pending) == 1


def test_what_comes_back_from_the_lane_after_the_tenure_is_ignored() -> None:
    node, spec = started(ranks=1)
    node.lane.at_once = False
    Rank(node, spec).push(0, 0)
    work, done = node.lane.waiting.popleft()
    made = work()
    node.leader.deposed(2)
    node.lead(3)
    done(made)
    assert node.log.pending == []


def test_parked_streams_end_when_somebody_else_leads() -> None:
    _, new, _ = replaced_leader(behind=3)
    rank = Rank(new, model_spec(ranks=1, blocks=1))
    rank.push(5, 0)
    new.leader.leader_changed(1, 3)
    assert rank.replies.refusal is not None
    assert rank.replies.refusal.leader_address == "node1:7000"
    assert not rank.held


def test_a_step_survives_any_number_of_leaders_bit_by_bit() -> None:
    """The command of the old leader is committed or lost; either way the step counts once (S1, P4)."""
    for committed in (False, True):
        node, spec = started()
        for rank in (0, 1):
            Rank(node, spec, rank).push(0, 0, 1, 2)
        if committed:
            node.log.commit()
        else:
            node.log.lose()
        node.leader.deposed(2)
        new = Node(node.log, 2)
        new.lead(2)
        ranks = [Rank(new, spec, rank) for rank in (0, 1)]
        for rank in ranks:
            rank.push(0, 0, 1, 2)
        new.settle()
        assert new.versions() == [1, 1, 1]
        for block in range(3):
            assert same_bits(new.weights(block), expected_weights(spec, block, 1))
        assert {status for *_, status in ranks[0].replies.seen} == {"DUPLICATE" if committed else "APPLIED"}


# --- retries --------------------------------------------------------------------------------------------------------


def test_a_contribution_sent_again_is_not_added_again_and_the_new_stream_gets_the_answer() -> None:
    node, spec = started()
    old = Rank(node, spec, 0)
    old.push(0, 0)
    new = Rank(node, spec, 0)
    assert old.replies.refusal is not None
    assert old.replies.refusal.reason is Reason.SUPERSEDED
    new.push(0, 0)
    Rank(node, spec, 1).push(0, 0)
    node.settle()
    assert same_bits(node.weights(0), expected_weights(spec, 0, 1))
    assert old.replies.frames == []
    assert new.replies.seen == [(0, 1, "APPLIED")]


def test_a_contribution_sent_again_while_its_command_is_proposed_waits_for_it() -> None:
    node, spec = started(ranks=1)
    Rank(node, spec).push(0, 0)
    assert len(node.log.pending) == 1
    again = Rank(node, spec)
    again.push(0, 0)
    assert len(node.log.pending) == 1
    assert not again.held
    node.settle()
    assert again.replies.seen == [(0, 1, "APPLIED")]


def test_a_closed_stream_leaves_its_contributions_in_the_sum() -> None:
    node, spec = started()
    gone, other = Rank(node, spec, 0), Rank(node, spec, 1)
    gone.push(0, 0)
    gone.stream.close()
    other.push(0, 0)
    node.settle()
    assert node.versions()[0] == 1
    assert gone.replies.frames == []


def test_a_full_log_delays_a_command_and_does_not_lose_it() -> None:
    node, spec = started(ranks=1)
    rank = Rank(node, spec)
    rank.push(0, 0)
    node.log.busy = True
    rank.push(0, 1)
    node.log.busy = False
    node.settle()
    assert rank.replies.seen == [(0, 1, "APPLIED"), (1, 1, "APPLIED")]


def test_a_full_disk_refuses_pushes_with_a_time_to_retry_and_takes_them_again() -> None:
    """RULES W5: nothing was appended, so the rank may push the same blocks again."""
    node, spec = started(ranks=1)
    rank = Rank(node, spec)
    node.log.full = True
    rank.push(0, 0)
    node.settle()
    refusal = rank.replies.refusal
    assert refusal is not None
    assert (refusal.reason, refusal.code, refusal.retryable) == (Reason.DISK_FULL, "RESOURCE_EXHAUSTED", True)
    assert refusal.retry_after_ms > 0
    node.log.full = False
    again = Rank(node, spec)
    again.push(0, 0, 1)
    node.settle()
    assert again.replies.seen == [(0, 1, "APPLIED"), (1, 1, "APPLIED")]


def test_an_offer_after_the_end_is_dropped_and_admitted() -> None:
    node, spec = started()
    rank = Rank(node, spec)
    node.leader.deposed(2)
    rank.push(0, 0, 1)
    assert not rank.held
    assert not rank.queue


# --- S5: the window -------------------------------------------------------------------------------------------------


def test_a_rank_that_runs_ahead_is_held_back_and_not_refused() -> None:
    node, spec = started(blocks=6, options=LeaderOptions(window_blocks=2))
    fast, slow = Rank(node, spec, 0), Rank(node, spec, 1)
    fast.push(0, *range(6))
    assert len(fast.queue) == 3
    assert fast.held
    slow.push(0, 0)
    assert len(fast.queue) == 2, "block 0 is proposed, so the window moved by one"
    slow.push(0, *range(1, 6))
    node.settle()
    assert fast.replies.seen == slow.replies.seen == [(block, 1, "APPLIED") for block in range(6)]


@pytest.mark.parametrize("window", [1, 2, 3, 16])
def test_ranks_at_different_blocks_never_wait_for_each_other_for_ever(window: int) -> None:
    node, spec = started(ranks=3, blocks=7, options=LeaderOptions(window_blocks=window))
    ranks = [Rank(node, spec, rank) for rank in range(3)]
    for step in range(2):
        for number, rank in enumerate(ranks):
            rank.push(step, *range(7))
            if number == 1:
                # This one's stream breaks in the middle; it starts again at its lowest unacknowledged block.
                ranks[1] = Rank(node, spec, 1)
                ranks[1].push(step, *range(7))
        node.settle()
    assert node.versions() == [2] * 7
    for block in range(7):
        assert same_bits(node.weights(block), expected_weights(spec, block, 2))


def test_a_rank_with_an_order_of_its_own_is_told_so_instead_of_blocking_all() -> None:
    """HAZARDS 36: in a bounded window two orders wait for each other for ever."""
    node, spec = started(blocks=6, options=LeaderOptions(window_blocks=2))
    one, other = Rank(node, spec, 0), Rank(node, spec, 1)
    one.push(0, *range(6))
    other.push(0, *reversed(range(6)))
    refusal = other.replies.refusal
    assert refusal is not None, "it would be held for ever"
    assert refusal.reason is Reason.OUT_OF_ORDER
    assert (refusal.field, refusal.expected, refusal.received) == ("block", "0", "5")
    again = Rank(node, spec, 1)
    again.push(0, *range(6))
    node.settle()
    assert node.versions() == [1] * 6


def test_acknowledged_blocks_may_be_left_out() -> None:
    node, spec = started(ranks=1, blocks=4)
    Rank(node, spec).push(0, 0, 1)
    node.settle()
    again = Rank(node, spec)
    again.push(0, 2, 3)
    node.settle()
    assert again.replies.seen == [(2, 1, "APPLIED"), (3, 1, "APPLIED")]


def test_open_sums_are_bounded_by_the_window() -> None:
    node, spec = started(ranks=4, blocks=40, options=LeaderOptions(window_blocks=3))
    for rank in range(3):
        Rank(node, spec, rank).push(0, *range(40))
    assert node.leader.counters["pushes_taken"] == 9


# --- S10, S6: skip and empty ----------------------------------------------------------------------------------------


def test_one_skip_makes_the_step_a_skip() -> None:
    node, spec = started()
    before = node.weights(0)
    Rank(node, spec, 0).push(0, 0)
    skipping = Rank(node, spec, 1)
    skipping.push(0, 0, kind=PushKind.SKIP)
    node.settle()
    assert node.versions()[0] == 1
    assert node.weights(0) is before
    assert bytes(skipping.replies.frames[0].payload) == before.tobytes()


def test_an_empty_contribution_counts_as_zeros() -> None:
    node, spec = started()
    before = node.weights(0).copy()
    Rank(node, spec, 0).push(0, 0, values=np.full(1024, 4.0, np.float32))
    Rank(node, spec, 1).push(0, 0, kind=PushKind.EMPTY)
    node.settle()
    assert same_bits(node.weights(0), before - np.float32(0.5) * np.float32(2.0))


def test_only_empty_contributions_change_nothing_but_the_version() -> None:
    node, spec = started()
    before = node.weights(0)
    for rank in (0, 1):
        Rank(node, spec, rank).push(0, 0, kind=PushKind.EMPTY)
    node.settle()
    assert node.versions()[0] == 1
    assert node.weights(0) is before


# --- S8: views ------------------------------------------------------------------------------------------------------


def set_view(node: Node, view: object) -> None:
    node.log.add(SetView(model=MODEL, generation=1, view=view))  # type: ignore[arg-type]
    node.apply()


def test_a_new_view_drops_sums_and_ends_streams() -> None:
    node, spec = started()
    rank = Rank(node, spec, 0)
    rank.push(0, 0)
    set_view(node, view_of(spec, 2, (1, 2)))
    assert rank.replies.refusal is not None
    assert (rank.replies.refusal.reason, rank.replies.refusal.view) == (Reason.VIEW_CHANGED, 2)
    Rank(node, spec, 1, view=2, lease_epoch=2).push(0, 0)
    assert node.log.pending == []
    Rank(node, spec, 0, view=2).push(0, 0)
    node.settle()
    assert same_bits(node.weights(0), expected_weights(spec, 0, 1))


def test_a_command_of_the_old_view_is_refused_and_the_new_one_counts() -> None:
    node, spec = started()
    for rank in (0, 1):
        Rank(node, spec, rank).push(0, 0)
    in_flight, node.log.pending = node.log.pending, []
    set_view(node, view_of(spec, 2, (1, 2)))
    node.log.pending = in_flight
    ranks = [Rank(node, spec, 0, view=2), Rank(node, spec, 1, view=2, lease_epoch=2)]
    ranks[0].push(0, 0)
    node.settle()
    assert node.versions()[0] == 0, "the old view's command came after the view"
    assert ranks[0].replies.refusal is None
    ranks[1].push(0, 0)
    node.settle()
    assert node.versions()[0] == 1
    assert node.alarms == []


def test_a_push_of_a_newer_view_is_parked_and_an_older_one_refused() -> None:
    node, spec = started()
    newer = Rank(node, spec, 0, view=2, lease_epoch=2)
    newer.push(0, 0)
    assert newer.held
    assert not newer.replies.opened
    set_view(node, view_of(spec, 2, (2, 1)))
    assert newer.replies.opened
    assert not newer.held
    with pytest.raises(Refusal) as older:
        Rank(node, spec, 1, view=1)
    assert (older.value.reason, older.value.view) == (Reason.VIEW_CHANGED, 2)
    with pytest.raises(Refusal) as taken:
        Rank(node, spec, 0, view=1, lease_epoch=1)
    assert (taken.value.reason, taken.value.epoch) == (Reason.STALE_LEASE, 2)


def test_a_contribution_of_the_old_view_never_gets_into_a_sum_of_the_new_one() -> None:
    """The apply lane may have the view before the listener hears of it."""
    node, spec = started()
    old = Rank(node, spec, 0)
    node.log.add(SetView(model=MODEL, generation=1, view=view_of(spec, 2, (2, 1))))
    applied_unheard = node.machine.apply(node.log.committed[-1])
    old.push(0, 0)
    Rank(node, spec, 1).push(0, 0)
    node.log.commit()
    assert applied_unheard.changed
    assert node.machine.apply(node.log.committed[-1]).why == "VIEW"


def test_a_rank_that_nobody_ever_took_cannot_push() -> None:
    node, spec = started()
    set_view(node, view_of(spec, 2, (1, 0)))
    with pytest.raises(Refusal) as caught:
        Rank(node, spec, 1, view=2, lease_epoch=0)
    assert caught.value.reason is Reason.STALE_LEASE


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_streams_are_bounded() -> None:
    node, spec = started(options=LeaderOptions(streams_max=2))
    for _ in range(2):
        Rank(node, spec, 0, view=9)
    with pytest.raises(Refusal) as caught:
        Rank(node, spec, 0, view=9)
    assert (caught.value.reason, caught.value.code) == (Reason.BUSY, "RESOURCE_EXHAUSTED")
    assert caught.value.retry_after_ms == LeaderOptions().retry_after_ms


def test_a_sum_that_was_dropped_costs_the_lane_nothing_more() -> None:
    node, spec = started(ranks=1)
    node.lane.at_once = False
    Rank(node, spec).push(0, 0)
    node.leader.deposed(2)
    work, _ = node.lane.waiting[0]
    assert work() is None, "neither checked nor summed"


def test_options_report_all_problems() -> None:
    problems = LeaderOptions(window_blocks=0, waiters_max=-1).validate()
    assert [problem.field for problem in problems] == ["window_blocks", "waiters_max"]
    assert LeaderOptions().validate() == []


def test_a_frame_may_not_be_offered_before_the_last_was_admitted() -> None:
    node, spec = started(options=LeaderOptions(window_blocks=1))
    rank = Rank(node, spec)
    rank.push(0, 0, 1)
    with pytest.raises(ValueError, match="not admitted"):
        rank.stream.offer(rank.frame(0, 2), lambda: None)


# --- C6: a planned hand-over ----------------------------------------------------------------------------------------


def test_a_hand_over_takes_no_new_blocks_and_lets_whole_ones_commit() -> None:
    """RULES C6: block 0 is whole and being summed, block 1 has one of two contributions."""
    node, spec = started()
    node.lane.at_once = False
    ranks = [Rank(node, spec, rank) for rank in (0, 1)]
    ranks[0].push(0, 0, 1)
    ranks[1].push(0, 0)
    assert not node.leader.drained()
    node.leader.handing_over(2)
    ranks[1].push(0, 1)
    ranks[0].push(0, 2)
    assert [rank.held for rank in ranks] == [True, True]
    node.lane.run_all()
    assert node.leader.drained()
    node.settle()
    assert node.versions() == [1, 0, 0]
    assert [rank.replies.seen for rank in ranks] == [[(0, 1, "APPLIED")]] * 2
    node.leader.deposed(1)
    node.leader.leader_changed(2, 2)
    for rank in ranks:
        assert rank.replies.refusal is not None
        assert rank.replies.refusal.reason is Reason.NOT_LEADER


def test_the_rest_goes_to_the_new_leader_and_counts_once() -> None:
    """RULES C6, S1: workers send there what was not acknowledged."""
    old, spec = started()
    new = Node(old.log, 2)
    before = [Rank(old, spec, rank) for rank in (0, 1)]
    before[0].push(0, 0, 1)
    before[1].push(0, 0)
    old.leader.handing_over(2)
    old.log.commit()  # block 0, proposed before
    old.leader.deposed(1)
    old.leader.leader_changed(2, 2)
    new.lead(2)
    after = [Rank(new, spec, rank) for rank in (0, 1)]
    for rank in after:
        rank.push(0, 0, 1, 2)
    new.settle()
    assert new.versions() == [1, 1, 1]
    for block in range(3):
        assert same_bits(new.weights(block), expected_weights(spec, block, 1))
    assert {rank.replies.seen[0] for rank in after} == {(0, 1, "DUPLICATE")}


def test_a_hand_over_that_is_given_up_goes_on_where_it_stood() -> None:
    """Nothing is applied that would bring the refused ones back: the end of the hand-over does."""
    node, spec = started()
    node.lane.at_once = False
    ranks = [Rank(node, spec, rank) for rank in (0, 1)]
    for rank in ranks:
        rank.push(0, 0)
    node.leader.handing_over(2)
    for rank in ranks:
        rank.push(0, 1)
    node.log.busy = True  # the core takes no proposals any more
    node.lane.run_all()
    assert not node.leader.drained()
    node.log.busy = False
    node.leader.handing_over(0)
    node.lane.run_all()
    node.settle()
    assert node.versions() == [1, 1, 0]
