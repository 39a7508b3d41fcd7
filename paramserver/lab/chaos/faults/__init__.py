"""The kinds of faults, by what they strike; importing this registers all of them."""

from paramserver.lab.chaos.faults import members, network, pressure, processes, storage, waiting

MODULES = (processes, members, network, pressure, storage, waiting)

__all__ = ["MODULES"]
