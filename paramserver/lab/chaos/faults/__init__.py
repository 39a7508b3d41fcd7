"""The kinds of faults, by what they strike; importing this registers all of them."""

from paramserver.lab.chaos.faults import members, network, pressure, processes, seams, storage

MODULES = (processes, members, network, pressure, storage, seams)

__all__ = ["MODULES"]
