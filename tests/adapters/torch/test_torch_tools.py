"""`DistributedOptimizer` on a cluster in memory: torch's own tools beside it, schedules, buffers, copies, its end."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch

from paramserver import errors
from tests.adapters.torch.kit import loss_of, net_of, optimizer_of, usual
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import client_of


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
