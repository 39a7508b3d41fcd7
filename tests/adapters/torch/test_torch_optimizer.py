"""`DistributedOptimizer` on a cluster in memory: what hooks send and when, and what a loop does before `step()`."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from paramserver import errors
from paramserver.torch import DistributedOptimizer
from tests.adapters.torch.kit import loss_of, net_of, optimizer_of, plain, same, trained, usual, values
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import client_of, until


@pytest.mark.parametrize("overlap", [True, False])
def test_a_loop_as_everybody_writes_it(overlap: bool) -> None:
    assert trained(4, usual, overlap=overlap)


def test_gradients_are_on_their_way_during_the_backward_pass() -> None:
    cluster = FakeCluster()
    net = net_of()
    with client_of(cluster) as client, optimizer_of(client, net) as optimizer:
        usual(net, optimizer, 0)
        loss_of(net, 1).backward()
        until(lambda: all(version == 2 for version in cluster.models[1].versions.values()))
        before = values(net)
        assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())
        optimizer.step()
        assert not torch.equal(net[0].weight, before["0.weight"]), "weights change in step() alone"
        # The last layer's blocks come first.
        assert [tensor.name for tensor in optimizer.model.spec.tensors] == ["2.bias", "2.weight", "0.bias", "0.weight"]


def test_the_first_step_sends_nothing_before_step() -> None:
    cluster = FakeCluster()
    net = net_of()
    with client_of(cluster) as client, optimizer_of(client, net):
        sent = len(cluster.frames)
        loss_of(net, 0).backward()
        assert len(cluster.frames) == sent


def test_ranks_begin_with_the_values_of_rank_0_and_stay_equal() -> None:
    cluster = FakeCluster()
    nets = [net_of(seed) for seed in (5, 6)]
    first = values(nets[0])
    reached: dict[int, dict[str, torch.Tensor]] = {}

    def run(rank: int) -> None:
        with client_of(cluster) as client, optimizer_of(client, nets[rank], rank=rank, ranks=2) as optimizer:
            reached[rank] = values(nets[rank])
            for step in range(3):
                usual(nets[rank], optimizer, 10 * step + rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(torch.equal(reached[rank][name], first[name]) for rank in (0, 1) for name in first)
    mine, theirs = (values(net) for net in nets)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_an_optimizer_that_is_opened_again_goes_on_where_the_model_is() -> None:
    cluster = FakeCluster()
    net, whole = net_of(), net_of()
    with client_of(cluster) as client:
        with optimizer_of(client, net) as optimizer:
            for step in range(2):
                usual(net, optimizer, step)
        net = net_of(seed=99)
        with optimizer_of(client, net) as optimizer:
            assert optimizer.model.step == 2
            for step in range(2, 4):
                usual(net, optimizer, step)
    other = plain(whole)
    for step in range(4):
        usual(whole, other, step)
    assert same(net, whole)


# --- what training loops do between backward() and step()


def test_clipping_in_the_loop() -> None:
    def clipped(net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        loss_of(net, step).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        optimizer.step()

    assert trained(3, clipped, overlap=False)
    with pytest.raises(
        errors.FailedPrecondition, match=r"tensor '.*' \(and 3 more\): its gradient was changed between"
    ):
        trained(3, clipped)


def test_clipping_by_the_client_is_that_of_torch() -> None:
    def clipped(net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        loss_of(net, step).backward()
        if not isinstance(optimizer, DistributedOptimizer):
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        optimizer.step()

    assert trained(3, clipped, clip_norm=0.01)


def test_a_changed_gradient_is_refused_before_anything_is_sent_and_later_too() -> None:
    cluster = FakeCluster()
    net = net_of()
    with client_of(cluster) as client, optimizer_of(client, net) as optimizer:
        sent = len(cluster.frames)
        loss_of(net, 0).backward()
        net[0].weight.grad.mul_(2)
        with pytest.raises(
            errors.FailedPrecondition, match=r"tensor '0.weight': .* would have been sent .*overlap=False"
        ):
            optimizer.step()
        assert len(cluster.frames) == sent
        usual(net, optimizer, 0)
        optimizer.zero_grad()
        loss_of(net, 1).backward()
        net[2].bias.grad = torch.zeros(48)
        with pytest.raises(errors.FailedPrecondition, match=r"tensor '2.bias': .* was already sent"):
            optimizer.step()


def test_mixed_precision_with_bfloat16() -> None:
    def mixed(net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(net, step)
        loss.backward()
        optimizer.step()

    assert trained(3, mixed)


def test_mixed_precision_with_a_scaler() -> None:
    scalers = {kind: torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2) for kind in (True, False)}

    def scaled(net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        scaler = scalers[isinstance(optimizer, DistributedOptimizer)]
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()

    assert trained(4, scaled, overlap=False)
    with pytest.raises(errors.FailedPrecondition, match="its gradient was changed"):
        trained(1, scaled)


def test_a_step_that_the_scaler_leaves_out_is_computed_again() -> None:
    net = net_of()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with client_of(FakeCluster()) as client, optimizer_of(client, net, overlap=False) as optimizer:
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, step)).backward()
            if step == 1:
                net[0].weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.model.step == 2
        assert scaler.get_scale() == 512.0


def test_gradients_in_pieces() -> None:
    def pieces(net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        if isinstance(optimizer, DistributedOptimizer):
            with optimizer.no_sync():
                (loss_of(net, 2 * step) / 2).backward()
        else:
            (loss_of(net, 2 * step) / 2).backward()
        (loss_of(net, 2 * step + 1) / 2).backward()
        optimizer.step()

    assert trained(3, pieces)
    assert trained(3, pieces, overlap=False)


def test_a_second_backward_pass_is_noticed() -> None:
    net = net_of()
    with client_of(FakeCluster()) as client, optimizer_of(client, net) as optimizer:
        loss_of(net, 0).backward()
        with pytest.raises(errors.FailedPrecondition, match=r"tensor '2.*a second one in step 0; no_sync"):
            loss_of(net, 1).backward()
        assert optimizer.model.step == 0


class Failing(torch.autograd.Function):
    """Between the layers: the backward pass fails there when it is told to."""

    fails = False

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        if Failing.fails:
            raise MemoryError("no memory on the device")
        return gradient


def fails_half_way(net: torch.nn.Sequential) -> None:
    Failing.fails = True
    try:
        with pytest.raises(MemoryError):
            net[2](Failing.apply(net[1](net[0](torch.randn(8, 64))))).square().mean().backward()
    finally:
        Failing.fails = False


@pytest.mark.parametrize(("steps", "options"), [(0, {}), (0, {"clip_norm": 1.0}), (2, {"clip_norm": 1.0})])
def test_a_backward_pass_that_failed_before_anything_was_sent_is_forgotten(steps: int, options: dict[str, Any]) -> None:
    net = net_of()
    with client_of(FakeCluster()) as client, optimizer_of(client, net, **options) as optimizer:
        for step in range(steps):
            usual(net, optimizer, step)
        optimizer.zero_grad()
        fails_half_way(net)
        usual(net, optimizer, steps)
        assert optimizer.model.step == steps + 1


def test_a_backward_pass_that_failed_with_a_part_on_its_way_is_taken_up_by_another_optimizer() -> None:
    net = net_of()
    with client_of(FakeCluster()) as client:
        with optimizer_of(client, net) as optimizer:
            usual(net, optimizer, 0)
            optimizer.zero_grad()
            fails_half_way(net)
            with pytest.raises(errors.FailedPrecondition, match=r"in step 1, of which a part is on .*make another opt"):
                usual(net, optimizer, 1)
        with optimizer_of(client, net) as optimizer:
            assert optimizer.model.step == 1
            usual(net, optimizer, 1)
            assert optimizer.model.step == 2


def test_a_closure() -> None:
    def closing(net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(net, step)
            loss.backward()
            return loss

        assert optimizer.step(closure).item() > 0

    assert trained(3, closing)


def test_zeroed_gradients_that_stay_there() -> None:
    def zeroed(net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad(set_to_none=False)
        loss_of(net, step).backward()
        optimizer.step()

    assert trained(3, zeroed)
