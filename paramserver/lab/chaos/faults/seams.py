"""Disks and clocks of servers that run: made to fail through the seams of servers that were started for that."""

from __future__ import annotations

from paramserver.lab.chaos.kinds import Draw, During, Injection, Need, fault
from paramserver.lab.chaos.scene import Scene
from paramserver.lab.errors import DeadlinePassed, LabError

SEAMS = (Need.SEAMS,)
STORAGE_FAILED = 74
"""Exit code of a server whose disk failed (docs/operations.md)."""
ENDS_S = 15.0
FULL_S = 15.0


@fault("slow_disk", rows=(11,), hold_s=(1.5, 3.0), needs=SEAMS, slow_ms=(1000.0, 3000.0))
def slow_disk(scene: Scene, draw: Draw) -> Injection:
    """Of a leader, or of a node that leads nothing."""
    if draw.choice.random() < 0.5:
        group, node = scene.leader(draw)
        target, led = f"node {node}, leads group {group}", True
    else:
        node = scene.follower(draw)
        target, led = f"node {node}, leads nothing", False
    scene.begins()
    scene.cluster.faults(node).disk(slow_ms=draw["slow_ms"])
    yield target
    scene.cluster.faults(node).heal()
    if not led:
        scene.lead_again(node)


@fault("full_disk", rows=(10,), hold_s=(0.5, 1.5), needs=SEAMS, during=During.WAITS)
def full_disk(scene: Scene, draw: Draw) -> Injection:
    """Of one node, or of all. It holds from when the node says so: what was allocated before is used up first. A log
    that only recycles its files may never need room; then it holds all the same, and that is noted."""
    nodes = scene.members() if draw.choice.random() < 0.3 else scene.some_nodes(draw, 1)
    for node in nodes:
        scene.cluster.faults(node).disk(full=True)
    try:
        scene.until(lambda: set(nodes) <= scene.full_disks(), "the disk to be full", FULL_S)
    except DeadlinePassed:
        refused = sum(scene.cluster.faults(node).state().refused for node in nodes)
        scene.note(f"{len(scene.full_disks())} of {len(nodes)} nodes found their disk full; {refused} writes refused")
    scene.begins()
    yield f"node{'s' * (len(nodes) > 1)} {', '.join(map(str, nodes))}"
    for node in nodes:
        scene.cluster.faults(node).heal()


@fault("fsync_error", rows=(9,), hold_s=(0.3, 0.7), needs=SEAMS, ends_servers=True)
def fsync_error(scene: Scene, draw: Draw) -> Injection:
    (node,) = scene.some_nodes(draw, 1)
    server = scene.cluster.servers[node]
    scene.begins()
    scene.cluster.faults(node).disk(fsync_error=True)
    scene.until(lambda: not server.running, f"{server.name} to end", ENDS_S)
    if server.code != STORAGE_FAILED:
        raise LabError(f"{server.name} ended with {server.code}, not {STORAGE_FAILED}", server.last_words())
    yield f"node {node}"
    scene.cluster.start_server(node)


@fault("clock_jump", rows=(18,), hold_s=(0.8, 1.5), needs=SEAMS, hours=(-48.0, 48.0))
def clock_jump(scene: Scene, draw: Draw) -> Injection:
    """Of one node's wall clock, or of all alike."""
    nodes = scene.members() if draw.choice.random() < 0.3 else scene.some_nodes(draw, 1)
    scene.begins()
    for node in nodes:
        scene.cluster.faults(node).clock(jump_s=draw["hours"] * 3600)
    yield f"node{'s' * (len(nodes) > 1)} {', '.join(map(str, nodes))} by {draw['hours']:+.1f} hours"
    for node in nodes:
        scene.cluster.faults(node).heal()


@fault("stall_leader", rows=(19,), hold_s=(2.2, 2.6), needs=SEAMS, stall_s=(1.5, 2.0))
def stall_leader(scene: Scene, draw: Draw) -> Injection:
    """No thread of its interpreter runs; it ends by itself."""
    group, node = scene.leader(draw)
    scene.begins()
    scene.cluster.faults(node).stall(draw["stall_s"])
    yield f"node {node}, leads group {group}"
