"""More load than the cluster takes."""

from __future__ import annotations

import sys

from paramserver.lab.chaos.kinds import Draw, Injection, fault
from paramserver.lab.chaos.scene import Scene

READY_S = 60.0
CLIENTS = 20
"""Ten times the two ranks that the digits have."""


@fault("overload", rows=(26, 29), hold_s=(1.5, 3.0), recovers_s=60.0)
def overload(scene: Scene, draw: Draw) -> Injection:
    name = f"flood-{draw.seed:08x}"
    line = [sys.executable, "-m", "paramserver.lab.chaos.flood", "--servers", scene.cluster.endpoints]
    flood = scene.cluster.start_child(name, [*line, "--clients", str(CLIENTS), "--name", name])
    scene.begins()
    flood.await_line("ready", READY_S)
    yield f"{CLIENTS} clients more"
    flood.kill()
