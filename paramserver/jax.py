"""Training code in JAX: pytrees in and out, `optimizer` in optax's manner; needs `pip install 'paramserver[jax]'`."""

from worker.jax import Optimizer as Optimizer
from worker.jax import State as State
from worker.jax import named as named
from worker.jax import optimizer as optimizer
from worker.jax import rebuilt as rebuilt

__all__ = ["Optimizer", "State", "named", "optimizer", "rebuilt"]
