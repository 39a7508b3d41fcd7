"""Faults of a server's disk, clock and interpreter, for tests of the whole system.

Only in a server that was started with `--fault-injection`, which is refused unless it binds loopback; no call of the
network reaches any of it. `disk`, `clock`: the seams with what may be wrong with them. `control`: the Unix socket on
which a harness says what, and the one object that a server holds.
"""
