"""A parameter server that cannot lose a step; `paramserver.connect()` is the front door."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paramserver import aio, errors, jax
    from paramserver import torch as torch  # not in __all__: without PyTorch it cannot be imported
    from paramserver.wire.spec import Codec, NonFinite, Reduction, TensorSpec, adam, momentum, sgd
    from worker import (
        LINEARIZABLE,
        Client,
        Future,
        Handover,
        Link,
        LossScale,
        Model,
        Pushed,
        Spec,
        Tensors,
        bounded,
        bsp,
        connect,
    )

_HOMES = {
    # Empty: a module of that name.
    "Client": "worker",
    "Codec": "paramserver.wire.spec",
    "LINEARIZABLE": "worker",
    "Future": "worker",
    "Handover": "worker",
    "Link": "worker",
    "LossScale": "worker",
    "Model": "worker",
    "NonFinite": "paramserver.wire.spec",
    "Pushed": "worker",
    "Reduction": "paramserver.wire.spec",
    "Spec": "worker",
    "TensorSpec": "paramserver.wire.spec",
    "Tensors": "worker",
    "adam": "paramserver.wire.spec",
    "aio": "",
    "bounded": "worker",
    "bsp": "worker",
    "connect": "worker",
    "errors": "",
    "jax": "",
    "momentum": "paramserver.wire.spec",
    "sgd": "paramserver.wire.spec",
    "torch": "",
}

__all__ = [
    "LINEARIZABLE",
    "Client",
    "Codec",
    "Future",
    "Handover",
    "Link",
    "LossScale",
    "Model",
    "NonFinite",
    "Pushed",
    "Reduction",
    "Spec",
    "TensorSpec",
    "Tensors",
    "adam",
    "aio",
    "bounded",
    "bsp",
    "connect",
    "errors",
    "jax",
    "momentum",
    "sgd",
]


def __getattr__(name: str) -> Any:
    # Looked up on first use: servers import this package too, and have no need of the worker.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not home:
        return import_module(f"{__name__}.{name}")
    module = import_module(home)
    try:
        return getattr(module, name)
    except AttributeError:
        # Our package `worker` has all of these: another one of that name stands before it on the path.
        raise ImportError(
            f"paramserver.{name}: the module {home!r} found at {getattr(module, '__file__', None)} is not ours; "
            f"rename that file, it shadows the package {home!r} of paramserver"
        ) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
