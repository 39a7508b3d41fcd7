"""A convolutional network in PyTorch on any number of ranks: a script as one writes it for one process, but for the
lines marked with `#+`.

    paramserver launch -n 2 --servers 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103 -- python examples/embed_torch.py

The number of steps and a name for the model may follow. Kill -9 a worker or a server: the same losses, and at the end
the same bits.
"""

import os
import sys

import torch

import paramserver.torch  # +

BATCH, SEED = 16, 7
RANK = int(os.environ.get("RANK", "0"))


def network() -> torch.nn.Module:
    torch.manual_seed(SEED)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 16, 10),
    )


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A function of (seed, rank, step) and nothing else: a restarted worker computes the same gradient again."""
    shapes = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(SEED))
    draw = torch.Generator().manual_seed(1000 * step + RANK)
    labels = torch.randint(10, (BATCH,), generator=draw)
    return shapes[labels] + torch.randn(BATCH, 1, 8, 8, generator=draw), labels


def main(steps: int, name: str) -> None:
    torch.set_num_threads(1)  # sums in one order: for bits that can be compared
    net = network()
    # torch.optim.Adam(net.parameters(), lr=1e-3) in one process
    optimizer = paramserver.torch.DistributedOptimizer(paramserver.adam(1e-3), net.named_parameters(), name=name)  # +
    for step in range(optimizer.model.step, steps):  # + not from 0: a restarted worker goes on where the model is
        images, labels = batch(step)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.9g}")
    print(f"step {optimizer.model.step}, digest {optimizer.model.pull().digest()}")
    optimizer.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, sys.argv[2] if len(sys.argv) > 2 else "embed-torch")
