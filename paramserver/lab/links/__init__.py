"""Faults of the network, on real sockets between the processes of a `lab.Cluster`.

`conditions`: what may be wrong with one direction of a link. `flow`, `connection`, `proxy`: the process that forwards
(`python -m paramserver.lab.links`). `reactor`: its loop. `control`: the harness's end, and what a network can suffer.
"""
