"""What training code runs; also reachable as paramserver.connect.

`connect()` gives a `Client`, `Client.model()` a `Model` with `pull`, `push`, `push_pull` and `wait`; `errors` is the
tree of what they raise. Names are looked up on first use: `import worker` costs nothing. A file of your own called
worker.py shadows this package (`paramserver.connect` will then say that it found no `connect`): rename that file.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker import errors
    from worker.client import Client, connect
    from worker.consistency import LINEARIZABLE, bounded
    from worker.device.link import Link
    from worker.device.scaling import LossScale
    from worker.futures import Future
    from worker.handover import Handover
    from worker.model import Model
    from worker.spec import Spec, bsp
    from worker.tensors import Pushed, Tensors

# Read when grpc is imported, which something in this package does first. With it, gRPC's handlers run in every process
# that is forked from one that trains, such as the workers of a torch DataLoader, and these hang or crash. A client
# never survives a fork either way: its calls say so (errors.Forked).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_HOMES = {
    "connect": "worker.client",
    "Client": "worker.client",
    "LINEARIZABLE": "worker.consistency",
    "bounded": "worker.consistency",
    "Future": "worker.futures",
    "Handover": "worker.handover",
    "Link": "worker.device.link",
    "LossScale": "worker.device.scaling",
    "Model": "worker.model",
    "Pushed": "worker.tensors",
    "Spec": "worker.spec",
    "Tensors": "worker.tensors",
    "bsp": "worker.spec",
}

__all__ = [
    "LINEARIZABLE",
    "Client",
    "Future",
    "Handover",
    "Link",
    "LossScale",
    "Model",
    "Pushed",
    "Spec",
    "Tensors",
    "bounded",
    "bsp",
    "connect",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("worker.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
