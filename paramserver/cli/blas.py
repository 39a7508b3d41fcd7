"""One thread for matrix products, in processes of ours. Must be called before NumPy is imported.

The bits of a product depend on how many threads share it, and the bundled model is too small to gain by more; a server
makes none at all, and threads that start with it spin for a tenth of a second before they sleep.
"""

from __future__ import annotations

import os

_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def one_thread() -> None:
    """Unless the environment says otherwise."""
    for name in _VARIABLES:
        os.environ.setdefault(name, "1")
