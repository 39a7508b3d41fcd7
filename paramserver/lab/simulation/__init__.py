"""Training on a simulated cluster: real shards and their leaders, ranks that crash and come back, one seed.

`run_seed(seed)` gives a `Report`; `report.raise_if_failed()` prints everything needed to understand a failure.
"""

from paramserver.lab.simulation.run import run_seed

__all__ = ["run_seed"]
