"""`paramserver.torch` on real servers: the same weights as torch in one process, and examples/embed_torch.py under kill
-9."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import paramserver
from paramserver import errors
from paramserver.lab.cluster import Cluster
from paramserver.torch import DistributedOptimizer
from paramserver.wire.spec import OptimizerSpec

ROOT = Path(__file__).parents[3]
STEPS = 200
LAUNCHED_STEPS = 150
BATCH = 16
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    torch.set_num_threads(1)
    with Cluster() as running:
        running.start()
        yield running


def net_of(seed: int = 3) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 16, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )


def loss_of(net: torch.nn.Module, step: int, rank: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(100 * step + rank)
    labels = torch.randint(10, (BATCH,), generator=draw)
    shapes = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images = shapes[labels] + torch.randn(BATCH, 1, 8, 8, generator=draw)
    return torch.nn.functional.cross_entropy(net(images), labels)


def distances(one: torch.nn.Module, other: torch.nn.Module) -> dict[str, float]:
    """By tensor: how far apart, as a share of the tensor's norm."""
    theirs = dict(other.named_parameters())
    return {name: ((mine - theirs[name]).norm() / theirs[name].norm()).item() for name, mine in one.named_parameters()}


Run = tuple[list[torch.nn.Module], list[list[float]]]
"""Each rank's network, and its losses step by step."""


def our_run(cluster: Cluster, name: str, ours: OptimizerSpec, ranks: int, schedule: bool) -> Run:
    nets = [net_of(seed=3 + rank) for rank in range(ranks)]  # ranks but 0 get other values at first
    losses: list[list[float]] = [[] for _ in range(ranks)]
    failed: list[BaseException] = []

    def run(rank: int) -> None:
        net = nets[rank]
        try:
            with DistributedOptimizer(
                ours, net.named_parameters(), name=name, servers=cluster.endpoints, rank=rank, ranks=ranks
            ) as optimizer:
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 60, 0.5) if schedule else None
                for step in range(STEPS):
                    optimizer.zero_grad()
                    loss = loss_of(net, step, rank)
                    loss.backward()
                    losses[rank].append(loss.item())
                    optimizer.step()
                    if scheduler is not None:
                        scheduler.step()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT_S)
    if failed:
        raise failed[0]
    return nets, losses


def torchs_run(make: Callable[..., torch.optim.Optimizer], ranks: int, schedule: bool) -> Run:
    net = net_of()
    losses: list[list[float]] = [[] for _ in range(ranks)]
    optimizer = make(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 60, 0.5) if schedule else None
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(ranks):
            loss = loss_of(net, step, rank)
            (loss / ranks).backward()  # the averaged gradient
            losses[rank].append(loss.item())
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return [net], losses


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("name", "ours", "theirs", "schedule"),
    [
        ("sgd", paramserver.sgd(0.05), lambda of: torch.optim.SGD(of, lr=0.05), False),
        ("adam", paramserver.adam(1e-3), lambda of: torch.optim.Adam(of, lr=1e-3), False),
        ("scheduled", paramserver.adam(1e-3), lambda of: torch.optim.Adam(of, lr=1e-3), True),
    ],
)
def test_it_is_torch_in_one_process(
    name: str,
    ours: OptimizerSpec,
    theirs: Callable[..., torch.optim.Optimizer],
    schedule: bool,
    ranks: int,
    cluster: Cluster,
) -> None:
    """In fp32 and with one thread: each loss of 200 steps, and each tensor after them, within rtol 1e-5."""
    nets, losses = our_run(cluster, f"{name}-{ranks}", ours, ranks, schedule)
    (reference,), expected = torchs_run(theirs, ranks, schedule)
    assert losses == [pytest.approx(of_rank, rel=1e-5) for of_rank in expected]
    for net in nets:
        found = distances(net, reference)
        assert max(found.values()) <= 1e-5, found
    assert all(distances(net, nets[0])[one] == 0 for net in nets for one in distances(net, nets[0]))
    moved = distances(net_of(), reference)
    assert min(moved.values()) > 1e-2, "or it shows nothing"


def test_a_schedule_goes_on_after_a_restart(cluster: Cluster) -> None:
    """Adam with a rate of its own for each ten steps; the process begins anew after 25, within such ten."""

    def rate(step: int) -> float:
        return 1.0 / (1 + step // 10)

    net = net_of()
    for first, last in ((0, 25), (25, 45)):
        torch.manual_seed(first)
        with torch.no_grad():
            for parameter in net.parameters() if first else ():
                parameter.zero_()
        with DistributedOptimizer(
            paramserver.adam(1e-3), net.named_parameters(), name="again", servers=cluster.endpoints
        ) as optimizer:
            assert optimizer.model.step == first
            assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * rate(max(first - 1, 0)))
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate, last_epoch=first - 1)
            for step in range(first, last):
                optimizer.zero_grad()
                loss_of(net, step, 0).backward()
                optimizer.step()
                scheduler.step()
    reference = net_of()
    theirs = torch.optim.Adam(reference.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, rate)
    for step in range(45):
        theirs.zero_grad()
        loss_of(reference, step, 0).backward()
        theirs.step()
        scheduler.step()
    found = distances(net, reference)
    assert max(found.values()) <= 1e-5, found


def test_another_rank_with_other_shapes_is_told_which(cluster: Cluster) -> None:
    """FAULTS bad input 7."""
    net, other = net_of(), net_of()
    other[8] = torch.nn.Linear(64, 11)
    options = {"name": "shapes", "servers": cluster.endpoints, "ranks": 2}
    with DistributedOptimizer(paramserver.sgd(0.1), net.named_parameters(), rank=0, **options):
        with pytest.raises(errors.SpecMismatch) as caught:
            DistributedOptimizer(paramserver.sgd(0.1), other.named_parameters(), rank=1, **options)
    assert "8.bias" in str(caught.value)
    assert "10" in str(caught.value)
    assert "11" in str(caught.value)


class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 32

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        return torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(at)), at % 10


def test_a_compiled_network_with_batches_from_forked_processes(cluster: Cluster) -> None:
    net = net_of()
    compiled = torch.compile(net, backend="aot_eager")
    with DistributedOptimizer(
        paramserver.sgd(0.1), net.named_parameters(), name="loader", servers=cluster.endpoints
    ) as optimizer:
        for _ in range(2):
            loader = torch.utils.data.DataLoader(Data(), batch_size=8, num_workers=2, multiprocessing_context="fork")
            for images, labels in loader:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(compiled(images), labels).backward()
                optimizer.step()
        assert optimizer.model.step == 8


# --- the example, and what is killed under it


def launched(servers: str, name: str) -> subprocess.Popen[str]:
    words = ["launch", "-n", "2", "--servers", servers, "--", sys.executable, str(ROOT / "examples/embed_torch.py")]
    return subprocess.Popen(
        [sys.executable, "-m", "paramserver", *words, str(LAUNCHED_STEPS), name],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(out: str) -> tuple[dict[tuple[str, str], set[str]], set[str]]:
    """(rank, step) -> the losses that were said of it; and the digests at the end."""
    losses: dict[tuple[str, str], set[str]] = {}
    for rank, step, loss in re.findall(r"^\[(\d)\] step (\d+) loss (\S+)$", out, re.MULTILINE):
        losses.setdefault((rank, step), set()).add(loss)
    return losses, set(re.findall(rf"^\[\d\] step {LAUNCHED_STEPS}, digest ([0-9a-f]+)$", out, re.MULTILINE))


def test_killing_a_server_and_a_worker_changes_no_loss_and_no_bit(cluster: Cluster) -> None:
    lines: list[str] = []
    killed = cluster.leader_of(1)
    with launched(cluster.endpoints, "disturbed") as job:
        try:
            assert job.stdout is not None
            assert job.stderr is not None
            pids = [int(pid) for pid in re.findall(r"\d+", job.stderr.readline().partition("processes")[2])]

            def until(step: int) -> None:
                while not lines or not lines[-1].startswith(f"[1] step {step} "):
                    lines.append(job.stdout.readline())
                    assert lines[-1], job.stderr.read()

            until(40)
            cluster.kill(killed)
            until(70)
            os.kill(pids[1], signal.SIGKILL)
            cluster.start_server(killed)
            lines.append(job.stdout.read())
            error = job.stderr.read()
            job.wait(TIMEOUT_S)
        finally:
            job.kill()
    assert job.returncode == 0, error
    assert re.search(r"rank 1 was killed by SIGKILL after [\d.]+ s: restart 1 of 3", error), error
    with launched(cluster.endpoints, "undisturbed") as job:
        try:
            reference, error = job.communicate(timeout=TIMEOUT_S)
        finally:
            job.kill()
    assert job.returncode == 0, error
    losses, digests = told("".join(lines))
    expected, undisturbed = told(reference)
    assert len(expected) == 2 * LAUNCHED_STEPS
    assert all(losses[one] == expected[one] for one in losses)
    # The one that was killed may have died between a step and its line.
    assert len(expected) - 1 <= len(losses) <= len(expected)
    assert digests == undisturbed
    assert len(undisturbed) == 1
