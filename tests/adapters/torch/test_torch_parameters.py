"""`DistributedOptimizer` on a cluster in memory: which parameters it takes, and what it says of those it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import paramserver
from paramserver import errors
from paramserver.torch import DistributedOptimizer
from tests.adapters.torch.kit import loss_of, net_of, optimizer_of, plain, same, usual, values
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import client_of


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


def trains_as_with_torch(mine: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """For three steps."""
    with client_of(FakeCluster()) as client, optimizer_of(client, mine) as optimizer:
        other = plain(theirs)
        for step in range(3):
            usual(mine, optimizer, step)
            usual(theirs, other, step)
    assert same(mine, theirs)


def test_a_parameter_that_is_used_twice_has_one_gradient() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.one = torch.nn.Linear(64, 64)
            self.two = self.one

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).tanh())

    trains_as_with_torch(Tied(), Tied())


def test_a_parameter_of_no_dimension() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * x

    mine = Scaled()
    trains_as_with_torch(mine, Scaled())
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
