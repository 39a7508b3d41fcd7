"""Initial weights: uniform in ± sqrt(6 / inputs) (He et al. 2015).

Invariants: a function of its arguments; drawn from raw Philox words, which no NumPy release may change; layers and
networks draw from streams of their own. Must not know: networks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_WORD = (1 << 64) - 1


def he_uniform(domain: int, seed: int, layer: int, shape: tuple[int, ...], inputs: int) -> npt.NDArray[np.float32]:
    """Values of `shape` for a layer whose every output sums over `inputs` values. `domain` names the network."""
    count = int(np.prod(shape))
    key = np.array([seed & _WORD, domain], dtype=np.uint64)
    # The counter's low word counts blocks of output; the layer takes a word of its own, so no two streams overlap.
    counter = np.array([0, layer, 0, 0], dtype=np.uint64)
    raw = np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count), dtype=np.uint64)
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    limit = np.sqrt(6.0 / inputs)
    return ((2.0 * uniform - 1.0) * limit).astype(np.float32).reshape(shape)
