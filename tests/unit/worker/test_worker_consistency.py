"""Pulls that must be new: what is asked of servers, what comes of refusals, what is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

import paramserver
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import BLOCKS, client_of, gradients, model_of
from worker import errors


def test_a_pull_says_how_new_it_must_be() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        after = model.push_pull(gradients(0)).result()
        cluster.pulls.clear()
        cluster.age_ms = 7
        weights = model.pull(consistency=paramserver.LINEARIZABLE)
        assert {request.group for _, request in cluster.pulls} == {1, 2, 3}
        assert all(request.linearizable and not request.bounded_ms for _, request in cluster.pulls)
        assert all(request.WhichOneof("want") == "min_version" for _, request in cluster.pulls)
        assert (weights.digest(), weights.versions, weights.age_ms) == (after.digest(), (1,) * BLOCKS, 7)
        cluster.pulls.clear()
        assert model.pull(consistency=paramserver.bounded(250), min_version=1).age_ms == 7
        assert all(request.bounded_ms == 250 and not request.linearizable for _, request in cluster.pulls)
        assert all(request.min_version == 1 for _, request in cluster.pulls)
        cluster.pulls.clear()
        assert model.pull().age_ms == 0
        assert not any(request.linearizable or request.bounded_ms for _, request in cluster.pulls)


def test_without_a_quorum_a_linearizable_pull_ends_with_the_reason_and_a_bounded_one_while_it_is_new_enough() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.no_quorum, cluster.age_ms = {2}, 400
        with pytest.raises(errors.DeadlineExceeded, match="no leader of group 2 confirms it"):
            model.pull(consistency=paramserver.LINEARIZABLE, timeout=0.1)
        assert {node for node, request in cluster.pulls if request.group == 2} == {1, 2, 3}, "every replica was asked"
        assert model.pull(consistency=paramserver.bounded(400)).age_ms == 400
        with pytest.raises(errors.DeadlineExceeded):
            model.pull(consistency=paramserver.bounded(399), timeout=0.1)
        cluster.no_quorum.clear()
        model.pull(consistency=paramserver.LINEARIZABLE)


def test_an_answer_that_is_older_than_its_bound_is_no_answer() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.age_ms = 20
        with pytest.raises(errors.ProtocolError, match="20 ms old"):
            model.pull(consistency=paramserver.bounded(10))


@pytest.mark.parametrize("age_ms", [0, -1, 86_400_001, 2**64, 1.5, True, "100", None])
def test_a_bound_that_can_not_be_meant(age_ms: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="age_ms"):
        paramserver.bounded(age_ms)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"consistency": "eventual"}, "consistency 'eventual'.*LINEARIZABLE or bounded"),
        ({"consistency": 100}, "consistency 100"),
        ({"consistency": paramserver.LINEARIZABLE, "version": 1}, "version and consistency"),
    ],
)
def test_what_no_pull_can_be(options: dict[str, Any], words: str) -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.pulls.clear()
        with pytest.raises(errors.InvalidArgument, match=words):
            model.pull(**options)
        assert not cluster.pulls
