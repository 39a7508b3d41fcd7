"""What the tests of `DistributedOptimizer` share: a small network, a loss, and the same steps on torch's own optimizer.

The servers of the cluster in memory compute plain SGD with a learning rate of 0.5. Must not know: what is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import paramserver
from paramserver.torch import DistributedOptimizer
from tests.unit.worker.fake import LEARNING_RATE, FakeCluster
from tests.unit.worker.helpers import client_of
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
