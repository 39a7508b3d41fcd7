"""`DistributedOptimizer` on a cluster in memory: what is not finite, too large, or takes too long."""

from __future__ import annotations

import pytest
import torch

import paramserver
from paramserver import errors
from tests.adapters.torch.kit import RATE, loss_of, net_of, optimizer_of, plain, same, usual, values
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import client_of


def test_a_gradient_that_is_not_finite_names_its_tensor() -> None:
    """FAULTS bad input 5: in the first step nothing is sent and training can go on, later it is said in the backward
    pass."""
    net, cluster = net_of(), FakeCluster()
    with client_of(cluster) as client, optimizer_of(client, net) as optimizer:
        sent = len(cluster.frames)
        (loss_of(net, 0) * torch.nan).backward()
        with pytest.raises(errors.NonFinite, match=r"nan in tensor '2.bias' at element 0"):
            optimizer.step()
        assert len(cluster.frames) == sent
        usual(net, optimizer, 0)
        optimizer.zero_grad()
        with pytest.raises(errors.NonFinite, match=r"gradient of step 1: nan in tensor '2.*this tensor was not put"):
            (loss_of(net, 1) * torch.nan).backward()
        assert optimizer.model.counts.rejected == 2
        # It was the first tensor, so nothing is on its way: the step is made of another batch.
        usual(net, optimizer, 1)
        assert optimizer.model.step == 2


@pytest.mark.parametrize("overlap", [True, False])
def test_a_step_is_skipped_as_a_whole(overlap: bool) -> None:
    net = net_of()
    options = {"overlap": overlap, "non_finite": paramserver.NonFinite.SKIP}
    with client_of(FakeCluster()) as client, optimizer_of(client, net, **options) as optimizer:
        usual(net, optimizer, 0)
        before = values(net)
        optimizer.zero_grad()
        loss = loss_of(net, 1)
        (loss + net[0].weight.sum() * torch.inf).backward()  # the first layer's alone, which comes last
        optimizer.step()
        assert optimizer.model.step == 2
        assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())
        usual(net, optimizer, 2)
        assert not torch.equal(net[2].weight, before["2.weight"])


def test_a_norm_beyond_the_bound_is_refused() -> None:
    """FAULTS bad input 6."""
    net = net_of()
    with client_of(FakeCluster()) as client, optimizer_of(client, net, reject_norm=1e-6) as optimizer:
        with pytest.raises(errors.NormTooLarge, match="expected a norm of at most 1e-06"):
            usual(net, optimizer, 0)
        assert optimizer.model.step == 0


@pytest.mark.parametrize("overlap", [True, False])
def test_training_goes_on_after_a_norm_that_was_refused(overlap: bool) -> None:
    net = net_of()
    with client_of(FakeCluster()) as client, optimizer_of(client, net, reject_norm=10.0, overlap=overlap) as optimizer:
        usual(net, optimizer, 0)
        optimizer.zero_grad()
        (loss_of(net, 1) * 1e6).backward()
        with pytest.raises(errors.NormTooLarge):
            optimizer.step()
        usual(net, optimizer, 1)
        assert optimizer.model.step == 2


def test_a_learning_rate_that_is_none_is_refused_before_anything_is_sent() -> None:
    net = net_of()
    with client_of(FakeCluster()) as client, optimizer_of(client, net) as optimizer:
        usual(net, optimizer, 0)
        optimizer.param_groups[0]["lr"] = float("nan")
        with pytest.raises(errors.InvalidArgument, match="received nan"):
            usual(net, optimizer, 1)
        optimizer.param_groups[0]["lr"] = RATE
        usual(net, optimizer, 1)
        assert optimizer.model.step == 2


@pytest.mark.parametrize("steps", [0, 1])
def test_gradients_of_the_next_step_while_one_is_in_flight(steps: int) -> None:
    """They would belong to no step."""
    cluster, net = FakeCluster(), net_of()
    with client_of(cluster) as client, optimizer_of(client, net) as optimizer:
        for step in range(steps):
            usual(net, optimizer, step)
        optimizer.zero_grad()
        cluster.hold = True
        loss_of(net, steps).backward()
        with pytest.raises(errors.DeadlineExceeded):
            optimizer.step(timeout=0.1)
        with pytest.raises(errors.FailedPrecondition, match=r"tensor '2.*in flight; step\(\) again"):
            usual(net, optimizer, steps + 1)
        with cluster.lock:
            cluster.hold = False
            cluster.set_view(cluster.models[1])
        optimizer.step()
        usual(net, optimizer, steps + 1)
        assert optimizer.model.step == steps + 2


def test_a_step_that_took_too_long_goes_on_with_the_next_call() -> None:
    """FAULTS bad input 15."""
    mine, theirs, cluster = net_of(), net_of(), FakeCluster()
    with client_of(cluster) as client, optimizer_of(client, mine) as optimizer:
        other = plain(theirs)
        for step in range(3):
            optimizer.zero_grad()
            cluster.hold = True
            loss_of(mine, step).backward()
            with pytest.raises(errors.DeadlineExceeded, match=f"step {step} of 'net'.*not complete in blocks"):
                optimizer.step(timeout=0.1)
            with pytest.raises(errors.FailedPrecondition, match="in flight"):
                optimizer.broadcast_parameters()
            with cluster.lock:
                cluster.hold = False
                cluster.set_view(cluster.models[1])
            optimizer.step()
            usual(theirs, other, step)
    assert same(mine, theirs)
