"""A cluster of real processes on this machine, for the demo, tests and benchmarks.

Owns starting, killing, pausing and restarting of server and worker processes (`cluster`, `processes`), what they say
of themselves (`status`, `records`), and the demo with its verdict (`demo`, `verdict`). Must not know how anything is
shown: that is the business of `paramserver.cli`.
"""
