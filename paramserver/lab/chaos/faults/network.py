"""What links between nodes do to what goes over them. Workers reach every node all the while."""

from __future__ import annotations

import random
import time

from paramserver.lab.chaos.kinds import Draw, During, Injection, Need, fault
from paramserver.lab.chaos.scene import Scene

LINKS = (Need.LINKS,)


@fault("partition_leader", rows=(12,), hold_s=(1.2, 2.0), needs=LINKS)
def partition_leader(scene: Scene, draw: Draw) -> Injection:
    group, node = scene.leader(draw)
    scene.begins()
    scene.cluster.links.isolate(node)
    yield f"node {node}, leads group {group}, alone"
    scene.cluster.links.heal()


@fault("partition_one_way", rows=(13,), hold_s=(1.2, 2.0), needs=LINKS)
def partition_one_way(scene: Scene, draw: Draw) -> Injection:
    group, node = scene.leader(draw)
    hears = draw.choice.random() < 0.5
    scene.begins()
    scene.cluster.links.one_way(node, hears=hears)
    yield f"node {node}, leads group {group}, {'hears and is not heard' if hears else 'is heard and hears nothing'}"
    scene.cluster.links.heal()


@fault("partition_bridge", rows=(13,), hold_s=(1.2, 2.0), needs=LINKS)
def partition_bridge(scene: Scene, draw: Draw) -> Injection:
    one, other = scene.some_nodes(draw, 2)
    scene.begins()
    scene.cluster.links.bridge(one, other)
    yield f"nodes {one} and {other} don't see each other"
    scene.cluster.links.heal()


@fault("clog_links", rows=(14,), hold_s=(0.5, 1.0), needs=LINKS, during=During.WAITS)
def clog_links(scene: Scene, draw: Draw) -> Injection:
    """One direction after the other, of two in three, some of them unclogged again on the way; then the rest, in
    another order. Which are left may keep every two nodes from hearing each other, so training may have to wait."""
    choice = random.Random(draw.seed)
    members = scene.members()
    pairs = [(one, other) for one in members for other in members if one != other]
    some = choice.sample(pairs, 2 * len(pairs) // 3)
    links = scene.cluster.links
    scene.begins()
    for number, (one, other) in enumerate(some):
        links.between(one, other).clog()
        time.sleep(0.1)
        if number % 2:
            earlier = some[choice.randrange(number)]
            links.between(*earlier).heal()
    yield f"{len(some)} of {len(pairs)} directions"
    for one, other in choice.sample(some, len(some)):
        links.between(one, other).heal()
        time.sleep(0.05)
    links.heal()


@fault("black_hole", rows=(16,), hold_s=(1.2, 2.0), needs=LINKS)
def black_hole(scene: Scene, draw: Draw) -> Injection:
    group, node = scene.leader(draw)
    scene.begins()
    scene.cluster.links.isolate(node, "black_hole")
    yield f"node {node}, leads group {group}"
    scene.cluster.links.heal()


@fault("loss", rows=(15,), hold_s=(1.5, 2.5), needs=LINKS, p=(0.02, 0.15))
def loss(scene: Scene, draw: Draw) -> Injection:
    scene.begins()
    scene.cluster.links.all().loss(draw["p"])
    yield f"{draw['p']:.1%} on every link"
    scene.cluster.links.heal()


@fault("delay", rows=(15,), hold_s=(1.5, 2.5), needs=LINKS, ms=(10.0, 75.0), jitter_ms=(0.0, 50.0))
def delay(scene: Scene, draw: Draw) -> Injection:
    ms, jitter_ms = draw["ms"], min(draw["ms"], draw["jitter_ms"])
    scene.begins()
    scene.cluster.links.all().delay(ms, jitter_ms=jitter_ms)
    yield f"{ms:.0f} ± {jitter_ms:.0f} ms on every link"
    scene.cluster.links.heal()


@fault("duplicate", rows=(15,), hold_s=(1.5, 2.5), needs=LINKS, p=(0.05, 0.5))
def duplicate(scene: Scene, draw: Draw) -> Injection:
    scene.begins()
    scene.cluster.links.all().duplicate(draw["p"])
    yield f"{draw['p']:.1%} on every link"
    scene.cluster.links.heal()


@fault("rate_limit", rows=(15,), hold_s=(1.5, 2.5), needs=LINKS, mb_per_s=(0.5, 4.0))
def rate_limit(scene: Scene, draw: Draw) -> Injection:
    scene.begins()
    scene.cluster.links.all().rate_limit(draw["mb_per_s"] * 1e6)
    yield f"{draw['mb_per_s']:.1f} MB/s on every link"
    scene.cluster.links.heal()
