"""More load than the cluster takes."""

from __future__ import annotations

import sys

from paramserver.lab.chaos.kinds import Draw, Injection, fault
from paramserver.lab.chaos.scene import Scene

READY_S = 60.0
CLIENTS = 20
"""Ten times the two ranks that the digits have."""


@fault("overload", rows=(26, 29), hold_s=(1.5, 3.0), recovers_s=60.0)
def overload(scene: Scene, _draw: Draw) -> Injection:
    line = [sys.executable, "-m", "paramserver.lab.chaos.flood", "--servers", scene.cluster.endpoints]
    line += ["--clients", str(CLIENTS), "--sessions", str(scene.cluster.folder)]
    flood = scene.cluster.start_child("flood", line)
    scene.begins()
    flood.await_line("ready", READY_S)
    yield f"{CLIENTS} clients more"
    flood.kill()
