"""Errors of the simulator.

SimulationError
├── Violated   something that must never happen happened: a bug in what is simulated
└── Misused    the simulation was set up wrongly: a bug in the test
"""

from __future__ import annotations


class SimulationError(Exception):
    """Root of the tree."""


class Violated(SimulationError):
    """A promise was broken. The message says which, where and by what."""


class Misused(SimulationError):
    """The caller asked for a simulation that makes no sense."""
