"""`DistributedOptimizer` on a cluster in memory: what hooks send and when, what torch's own tools do to it, and what is
refused. Its servers compute plain SGD with a learning rate of 0.5."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import paramserver
from paramserver import errors
from paramserver.torch import DistributedOptimizer
from tests.unit.worker.fake import LEARNING_RATE, FakeCluster
from tests.unit.worker.helpers import client_of, until
from worker.client import Client

RATE = float(LEARNING_RATE)


def net_of(seed: int = 0) -> torch.nn.Sequential:
    """Of 4 and 3 blocks in its two layers, and a few elements."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 48))


def optimizer_of(client: Client, net: torch.nn.Module, **options: Any) -> DistributedOptimizer:
    given = {"name": "net", "servers": client, "block_bytes": 4096, **options}
    return DistributedOptimizer(paramserver.sgd(RATE), net.named_parameters(), **given)


def loss_of(net: torch.nn.Module, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return net(torch.randn(8, 64, generator=draw)).square().mean()


def plain(net: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=RATE)


def values(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.allclose(mine, theirs[name], rtol=1e-5, atol=1e-7) for name, mine in one.named_parameters())


def trained(steps: int, loop: Callable[[torch.nn.Module, torch.optim.Optimizer, int], None], **options: Any) -> bool:
    """Whether our optimizer and torch's own end at the same weights."""
    mine, theirs = net_of(), net_of()
    with client_of(FakeCluster()) as client, optimizer_of(client, mine, **options) as optimizer:
        other = plain(theirs)
        for step in range(steps):
            loop(mine, optimizer, step)
            loop(theirs, other, step)
        assert optimizer.model.step == steps
    return same(mine, theirs)


def usual(net: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss_of(net, step).backward()
    optimizer.step()


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


# --- which parameters


class Branches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.other = torch.nn.Linear(64, 48), torch.nn.Linear(64, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_parameter_without_a_gradient(overlap: bool) -> None:
    net = Branches()
    with client_of(FakeCluster()) as client, optimizer_of(client, net, overlap=overlap) as optimizer:
        loss_of(net, 0).backward()
        with pytest.raises(
            errors.InvalidArgument, match=r"tensor 'other.*: expected a gradient, received none; tensor '"
        ):
            optimizer.step()
    net = Branches()
    before = values(net)
    with client_of(FakeCluster()) as client, optimizer_of(client, net, overlap=overlap, unused="zeros") as optimizer:
        for step in range(3):
            usual(net, optimizer, step)
    assert torch.equal(net.other.weight, before["other.weight"])
    assert not torch.equal(net.used.weight, before["used.weight"])


def test_a_parameter_that_is_used_twice_has_one_gradient() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.one = torch.nn.Linear(64, 64)
            self.two = self.one

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).tanh())

    mine, theirs = Tied(), Tied()
    with client_of(FakeCluster()) as client, optimizer_of(client, mine) as optimizer:
        other = plain(theirs)
        for step in range(3):
            usual(mine, optimizer, step)
            usual(theirs, other, step)
    assert same(mine, theirs)


def test_a_parameter_of_no_dimension() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * x

    mine, theirs = Scaled(), Scaled()
    with client_of(FakeCluster()) as client, optimizer_of(client, mine) as optimizer:
        other = plain(theirs)
        for step in range(3):
            usual(mine, optimizer, step)
            usual(theirs, other, step)
    assert same(mine, theirs)
    assert mine.scale.item() != 2.0


def test_parameters_that_require_no_gradient_rest() -> None:
    net, cluster = net_of(), FakeCluster()
    net[0].requires_grad_(False)
    before = values(net)
    with client_of(cluster) as client, optimizer_of(client, net) as optimizer:
        for step in range(3):
            usual(net, optimizer, step)
        assert torch.equal(net[0].weight, before["0.weight"])
        assert not torch.equal(net[2].weight, before["2.weight"])
        with torch.no_grad():
            net[0].weight.zero_()
        optimizer.broadcast_parameters()
        assert torch.equal(net[0].weight, before["0.weight"]), "the servers have it, too"


@pytest.mark.parametrize("overlap", [True, False])
def test_a_parameter_that_is_frozen_no_more_is_named(overlap: bool) -> None:
    net = net_of()
    net[0].requires_grad_(False)
    with client_of(FakeCluster()) as client:
        with optimizer_of(client, net, overlap=overlap) as optimizer:
            usual(net, optimizer, 0)
            net[0].requires_grad_(True)
            with pytest.raises(errors.FailedPrecondition, match=r"tensor '0.*1 more.*frozen.*make another optimizer"):
                usual(net, optimizer, 1)
        before = values(net)
        with optimizer_of(client, net, overlap=overlap) as optimizer:
            usual(net, optimizer, 1)
            assert not torch.equal(net[0].weight, before["0.weight"])


def test_half_precision_parameters_are_copies_of_the_servers_float32() -> None:
    net = net_of().bfloat16()
    with client_of(FakeCluster()) as client, optimizer_of(client, net) as optimizer:
        for step in range(2):
            optimizer.zero_grad()
            draw = torch.Generator().manual_seed(step)
            net(torch.randn(8, 64, generator=draw).bfloat16()).float().square().mean().backward()
            optimizer.step()
        kept = torch.from_numpy(optimizer.model.pull()["0.weight"])
        assert torch.equal(net[0].weight, kept.bfloat16())
        assert not torch.equal(kept, kept.bfloat16().float()), "where less than a bfloat16 is not lost"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            lambda: {"w": torch.zeros(3, dtype=torch.int64)},
            "tensor 'w': expected float32, bfloat16 or float16, received int64",
        ),
        (lambda: {"w": torch.zeros(3, dtype=torch.complex64)}, "tensor 'w': .*received complex64"),
        (lambda: {"w": torch.zeros(3, dtype=torch.float64)}, "tensor 'w': .*received float64"),
        (lambda: {"w": torch.zeros(3, device="meta")}, "tensor 'w': expected values, received .* meta"),
        (lambda: {"w": torch.zeros(3).to_sparse()}, "tensor 'w': expected a dense tensor, received sparse_coo"),
        (lambda: {"a": torch.zeros(2).int(), "b": torch.zeros(2).int()}, "tensor 'a': .*; tensor 'b': "),
        (lambda: {"w": torch.zeros(0)}, "expected dimensions >= 1"),
        (lambda: {"w": torch.ones(2, requires_grad=True) * 2}, r"tensor 'w': expected a parameter \(a leaf\)"),
        (lambda: {"a/../b": torch.zeros(2)}, r"a/\.\./b"),
        (lambda: {"a\x1b[1m": torch.zeros(2)}, r"a\\x1b"),
        (dict, "named_parameters: none"),
    ],
)
def test_what_cannot_be_a_parameter_is_named(wrong: Callable[[], dict[str, torch.Tensor]], words: str) -> None:
    """FAULTS bad input 8, and what only torch has."""
    with client_of(FakeCluster()) as client, pytest.raises(errors.InvalidArgument, match=words):
        DistributedOptimizer(paramserver.sgd(0.5), wrong().items(), name="net", servers=client)  # type: ignore[arg-type]


def test_what_else_the_constructor_refuses() -> None:
    net = net_of()
    with client_of(FakeCluster()) as client:
        with pytest.raises(errors.InvalidArgument, match=r"named_parameters\(\)"):
            DistributedOptimizer(paramserver.sgd(0.5), net.parameters(), name="net", servers=client)  # type: ignore[arg-type]
        with pytest.raises(errors.InvalidArgument, match="optimizer SGD; expected sgd"):
            DistributedOptimizer(plain(net), net.named_parameters(), name="net", servers=client)  # type: ignore[arg-type]
        with pytest.raises(errors.InvalidArgument, match="unused 'never'"):
            optimizer_of(client, net, unused="never")
        with pytest.raises(errors.InvalidArgument, match="rank 2; expected 0 to 1"):
            optimizer_of(client, net, rank=2, ranks=2)


def test_a_rank_that_is_taken_names_its_holder() -> None:
    """FAULTS bad input 13."""
    cluster = FakeCluster()
    with client_of(cluster) as client, client_of(cluster) as second, optimizer_of(client, net_of()):
        with pytest.raises(errors.RankTaken, match="session 1"):
            optimizer_of(second, net_of())


def test_a_sparse_gradient_is_named() -> None:
    net = torch.nn.Embedding(10, 4, sparse=True)
    with client_of(FakeCluster()) as client, optimizer_of(client, net) as optimizer:
        with pytest.raises(
            errors.InvalidArgument, match="tensor 'weight': expected a dense gradient, received sparse_coo"
        ):
            net(torch.tensor([1, 2])).sum().backward()
        assert optimizer.model.step == 0


# --- what is not finite, and what takes too long


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


# --- torch's own tools


def test_the_learning_rate_is_told_by_rank_0_before_the_step_it_holds_from(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, float]] = []
    net = net_of()
    with client_of(FakeCluster()) as client, optimizer_of(client, net) as optimizer:
        monkeypatch.setattr(
            optimizer.model, "set_learning_rate", lambda value, from_step, timeout: told.append((from_step, value))
        )
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
        for step in range(5):
            usual(net, optimizer, step)
            scheduler.step()
        assert told == [(2, pytest.approx(0.05)), (4, pytest.approx(0.005))]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
        state = optimizer.state_dict()
        assert state["state"] == {}, "what the optimizer remembers is on the servers"
        optimizer.param_groups[0]["lr"] = 1.0
        optimizer.load_state_dict(state)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
        with pytest.raises(errors.FailedPrecondition, match="second parameter group"):
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
        for duplicate in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"state_dict\(\)"):
                duplicate(optimizer)


def test_other_ranks_do_not_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster()
    told: list[int] = []
    with client_of(cluster) as client, client_of(cluster) as second:
        first = optimizer_of(client, net_of(), rank=0, ranks=2)
        other = optimizer_of(second, net_of(), rank=1, ranks=2)
        for one in (first, other):
            rank = one.model.rank
            monkeypatch.setattr(one.model, "set_learning_rate", lambda *_, rank=rank, **__: told.append(rank))
            one.param_groups[0]["lr"] = 0.25
            one._tell_rate()
        assert told == [0]


def test_buffers_are_those_of_rank_0_at_first_and_then_each_ranks_own() -> None:
    def net_with(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.BatchNorm1d(48))
        net(torch.randn(16, 64))  # moves the running statistics
        return net

    cluster, found = FakeCluster(), {}
    nets = [net_with(seed) for seed in (1, 2)]
    mean = nets[0][1].running_mean.clone()

    def run(rank: int) -> None:
        with client_of(cluster) as client, optimizer_of(client, nets[rank], rank=rank, ranks=2) as optimizer:
            optimizer.broadcast_buffers(nets[rank])
            found[rank] = {name: value.clone() for name, value in nets[rank].named_buffers()}
            usual(nets[rank], optimizer, rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert torch.equal(found[1]["1.running_mean"], mean)
    assert torch.equal(found[1]["1.num_batches_tracked"], torch.tensor(1))
    assert found[1]["1.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)
    assert not torch.equal(nets[0][1].running_mean, nets[1][1].running_mean)


def test_a_buffer_that_float32_cannot_hold_is_named() -> None:
    net = net_of()
    net.register_buffer("count", torch.tensor(2**24 + 1))
    with client_of(FakeCluster()) as client, optimizer_of(client, net) as optimizer:
        with pytest.raises(errors.InvalidArgument, match="buffer 'count': expected values that float32 holds"):
            optimizer.broadcast_buffers(net)


def test_closing_takes_the_hooks_off() -> None:
    net = net_of()
    with client_of(FakeCluster()) as client:
        with optimizer_of(client, net) as optimizer:
            usual(net, optimizer, 0)
        loss_of(net, 1).backward()
        with pytest.raises(errors.Closed):
            optimizer.step()
        assert client.describe("net").open, "the connection is the caller's"


def test_weights_are_those_of_the_servers_to_the_bit() -> None:
    net = net_of()
    with client_of(FakeCluster()) as client, optimizer_of(client, net) as optimizer:
        usual(net, optimizer, 0)
        for name, array in optimizer.model.pull().items():
            assert np.array_equal(dict(net.named_parameters())[name].detach().numpy(), array)
