"""A stand-in for CuPy on NumPy: what of it worker/device and worker/reference use, as strictly as it takes it.

    with installed() as world: import cupy ...

It is asynchronous as a GPU is: a kernel or a copy that was given to a stream is done when somebody waits for it and not
before, or, on streams that are told to be early, the moment it is given; in the order that streams and events prescribe
and in no better one. Memory that was let go is spoiled, so
is memory that was never written. `world` counts what was done and makes calls fail on demand.
"""

from tests.unit.device.standin.install import installed
from tests.unit.device.standin.world import World

__all__ = ["World", "installed"]
