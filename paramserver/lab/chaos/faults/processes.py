"""Processes killed with kill -9 or stopped with SIGSTOP: servers by their role, workers."""

from __future__ import annotations

from paramserver.lab.chaos.kinds import Draw, During, Injection, fault
from paramserver.lab.chaos.load import COUNTING, DIGITS
from paramserver.lab.chaos.scene import Scene


@fault("kill_leader", rows=(1,), hold_s=(0.3, 0.7), ends_servers=True)
def kill_leader(scene: Scene, draw: Draw) -> Injection:
    group, node = scene.leader(draw)
    scene.begins()
    scene.cluster.kill(node)
    yield f"node {node}, leads group {group}"
    scene.cluster.start_server(node)


@fault("kill_follower", rows=(2,), hold_s=(0.3, 0.7), follower=True, ends_servers=True)
def kill_follower(scene: Scene, draw: Draw) -> Injection:
    node = scene.follower(draw)
    scene.begins()
    scene.cluster.kill(node)
    yield f"node {node}, leads nothing"
    scene.cluster.start_server(node)
    scene.lead_again(node)


@fault("kill_majority", rows=(3, 29), hold_s=(0.5, 1.5), during=During.WAITS, ends_servers=True)
def kill_majority(scene: Scene, draw: Draw) -> Injection:
    nodes = scene.majority(draw)
    scene.begins()
    for node in nodes:
        scene.cluster.kill(node)
    yield f"nodes {', '.join(map(str, nodes))}"
    for node in nodes:
        scene.cluster.start_server(node, wait=False)
    scene.cluster.await_ready(nodes)


@fault("kill_all", rows=(3, 29), hold_s=(0.2, 1.0), during=During.WAITS, ends_servers=True)
def kill_all(scene: Scene, _draw: Draw) -> Injection:
    scene.begins()
    for node in scene.members():
        scene.cluster.kill(node)
    yield "every node"
    scene.cluster.start()


@fault("kill_catalogue_leader", rows=(1,), hold_s=(0.3, 0.7), ends_servers=True)
def kill_catalogue_leader(scene: Scene, _draw: Draw) -> Injection:
    node = scene.catalogue_leader()
    scene.begins()
    scene.cluster.kill(node)
    yield f"node {node}, leads the catalogue"
    scene.cluster.start_server(node)


@fault("pause_leader", rows=(17,), hold_s=(1.2, 2.0))
def pause_leader(scene: Scene, draw: Draw) -> Injection:
    group, node = scene.leader(draw)
    scene.begins()
    scene.cluster.pause(node)
    yield f"node {node}, leads group {group}"
    scene.cluster.resume(node)


@fault("kill_worker", rows=(27, 28), hold_s=(0.0, 0.3), during=During.WAITS)
def kill_worker(scene: Scene, draw: Draw) -> Injection:
    load, rank = _worker(scene, draw)
    scene.begins()
    scene.load.find(load, rank).process.kill()
    yield f"{load} rank {rank}"
    scene.load.restart(load, rank)


@fault("pause_worker", rows=(28,), hold_s=(0.5, 1.5), during=During.WAITS)
def pause_worker(scene: Scene, draw: Draw) -> Injection:
    load, rank = _worker(scene, draw)
    scene.begins()
    scene.load.find(load, rank).process.pause()
    yield f"{load} rank {rank}"
    scene.load.find(load, rank).process.resume()


def _worker(scene: Scene, draw: Draw) -> tuple[str, int]:
    load = draw.choice.choice((DIGITS, COUNTING))
    return load, draw.choice.choice([one.rank for one in scene.load.ranks if one.load == load])
