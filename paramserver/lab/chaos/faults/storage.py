"""Data folders that are lost or rot while their server is down."""

from __future__ import annotations

import random
import shutil
import time

from paramserver.lab import bitflips
from paramserver.lab.chaos.kinds import Draw, Injection, fault
from paramserver.lab.chaos.scene import REPAIR_S, Scene
from paramserver.lab.cluster import WAITING
from paramserver.lab.errors import LabError

REFUSED_S = 20.0
SNAPSHOT_S = 30.0


@fault("wipe_disk", rows=(23,), hold_s=(0.2, 0.5), recovers_s=60.0, ends_servers=True)
def wipe_disk(scene: Scene, draw: Draw) -> Injection:
    """The node comes back with its flags and an empty folder: it must take no part until its place was given to it. One
    of the first members names the command for that; one that came later waits like any newcomer."""
    (node,) = scene.some_nodes(draw, 1)
    scene.begins()
    scene.cluster.kill(node)
    shutil.rmtree(scene.cluster.data_folder(node))
    scene.cluster.start_server(node, wait=False)
    yield f"node {node}"
    server = scene.cluster.servers[node]
    said = (f"node replace {node} {node}=", WAITING)
    scene.until(
        lambda: not server.running or any(one in server.output() for one in said),
        f"{server.name} to name the command that repairs it",
        REFUSED_S,
    )
    if not server.running:
        raise LabError(f"{server.name} ended with {server.code}", server.last_words())
    if "ready node=" in server.output():
        raise LabError(f"{server.name} serves with an empty folder", server.last_words())
    scene.give_place(node)


@fault("bitflip_wal", rows=(7,), hold_s=(0.2, 0.5), recovers_s=60.0, ends_servers=True)
def bitflip_wal(scene: Scene, draw: Draw) -> Injection:
    """One bit of an entry that is committed and known durable."""
    (node,) = scene.some_nodes(draw, 1)
    scene.begins()
    scene.cluster.kill(node)
    flip = bitflips.bitflip_wal(scene.cluster.data_folder(node), random.Random(draw.seed))
    yield f"node {node}, entry {flip.index} of group {flip.group}"
    come_back(scene, node)


@fault("bitflip_snapshot", rows=(7, 8), hold_s=(0.2, 0.5), recovers_s=60.0, ends_servers=True)
def bitflip_snapshot(scene: Scene, draw: Draw) -> Injection:
    """One bit of a snapshot that the log names."""
    (node,) = scene.some_nodes(draw, 1)
    scene.until(lambda: scene.has_snapshot(node), f"node {node} to have written a snapshot", SNAPSHOT_S)
    scene.begins()
    scene.cluster.kill(node)
    flip = bitflips.bitflip_snapshot(scene.cluster.data_folder(node), random.Random(draw.seed))
    yield f"node {node}, snapshot of group {flip.group} up to {flip.index}"
    come_back(scene, node)


def come_back(scene: Scene, node: int) -> None:
    """Start it; it fills what it lost from the others, or does not run what it can't trust: then its place goes to an
    empty folder, as operations.md has it."""
    server = scene.cluster.servers[node]
    server.start()
    deadline = time.monotonic() + REPAIR_S
    while time.monotonic() < deadline:
        if not server.running:
            scene.note(f"server {node} ended with {server.code}: {server.last_words().splitlines()[-1][:200]}")
            break
        if "ready node=" in server.output():
            if not (missing := scene.not_whole()):
                return
            if scene.problems_of(node):
                scene.note(f"node {node}: {missing[:200]}")
                break
        time.sleep(0.1)
    scene.give_place(node)
    scene.note(f"node {node}: its place was given to an empty folder")
