"""One process of torch RPC's parameter server: number 0 is the server, the others are trainers.

As PyTorch's own tutorial on batch updates has it: a trainer's call carries its gradient, the server adds it to the sum,
the last one steps the weights, and the futures of all calls of the step are answered with them. Nothing is copied that
torch does not copy: the first gradient of a step is the accumulator, numpy arrays and tensors share their memory. With
bf16 both ways carry bf16; sums and weights are fp32.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import rpc

from benchmarks.pushpull.case import LEARNING_RATE, SEED
from benchmarks.pushpull.pacing import Pace

THREADS = 16
TIMEOUT_S = 300.0


class Server:
    """Of this process, if it is the server."""

    def __init__(self, elements: int, workers: int) -> None:
        self.weights = torch.zeros(elements)
        self.workers = workers
        self.lock = threading.Lock()
        self.sum: Any = None
        self.count = 0
        self.answer: Any = torch.futures.Future()

    def take(self, gradient: Any) -> Any:
        with self.lock:
            answer = self.answer
            if self.count == 0:
                self.sum = gradient.to(torch.float32)
            else:
                self.sum.add_(gradient)
            self.count += 1
            if self.count == self.workers:
                self.weights.sub_(self.sum, alpha=LEARNING_RATE / self.workers)
                self.count, self.answer, self.sum = 0, torch.futures.Future(), None
                # Nobody pushes the next step before the answer has arrived, so the weights may be sent as they lie.
                answer.set_result(self.weights.to(gradient.dtype))
        return answer


server: Server | None = None


@rpc.functions.async_execution
def push_pull(gradient: Any) -> Any:
    if server is None:
        raise RuntimeError("the server is not there yet")
    return server.take(gradient)


def ready() -> bool:
    return server is not None


def main() -> None:
    global server
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--elements", type=int, required=True)
    parser.add_argument("--codec", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--gate", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    if options.number == 0:
        server = Server(options.elements, options.workers)
    rpc.init_rpc(
        "server" if options.number == 0 else f"trainer{options.number - 1}",
        rank=options.number,
        world_size=options.workers + 1,
        rpc_backend_options=rpc.TensorPipeRpcBackendOptions(
            num_worker_threads=THREADS,
            rpc_timeout=TIMEOUT_S,
            init_method=f"tcp://127.0.0.1:{options.port}",
            _transports=["uv"],
            _channels=["basic"],
        ),
    )
    if options.number > 0:
        train(options)
    rpc.shutdown()


def train(options: argparse.Namespace) -> None:
    draw = np.random.default_rng(SEED + options.number - 1)
    gradient = draw.standard_normal(options.elements, dtype=np.float32)
    while not rpc.rpc_sync("server", ready):
        pass
    for _ in Pace(options.gate, options.record).steps():
        tensor = torch.from_numpy(gradient)
        if options.codec == "bf16":
            tensor = tensor.to(torch.bfloat16)
        answer = rpc.rpc_sync("server", push_pull, args=(tensor,))
        weights = answer.to(torch.float32).numpy()
        if weights.shape != gradient.shape:
            raise RuntimeError(f"weights of shape {weights.shape}")


if __name__ == "__main__":
    main()
