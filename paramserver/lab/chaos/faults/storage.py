"""Data folders that are lost or rot while their server is down."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from consensus.storage.records import HEADER_BYTES, Kind, find_headers
from paramserver.lab.chaos.kinds import Draw, Injection, fault
from paramserver.lab.chaos.scene import REPAIR_S, Scene
from paramserver.lab.errors import LabError

REFUSED_S = 20.0


@fault("wipe_disk", rows=(23,), hold_s=(0.2, 0.5), recovers_s=60.0, ends_servers=True)
def wipe_disk(scene: Scene, draw: Draw) -> Injection:
    """The node comes back with its flags and an empty folder: it must take no part until its place was given to it."""
    (node,) = scene.some_nodes(draw, 1)
    scene.begins()
    scene.cluster.kill(node)
    shutil.rmtree(scene.cluster.data_folder(node))
    scene.cluster.start_server(node, wait=False)
    yield f"node {node}"
    server = scene.cluster.servers[node]
    repair = f"node replace {node} {node}="
    scene.until(lambda: repair in server.output() or not server.running, "the command that repairs it", REFUSED_S)
    if repair not in server.output():
        raise LabError(f"{server.name} did not name the command that repairs it", server.last_words())
    if "ready node=" in server.output():
        raise LabError(f"{server.name} serves with an empty folder", server.last_words())
    scene.give_place(node)


@fault("bitflip_wal", rows=(7,), hold_s=(0.2, 0.5), recovers_s=60.0, ends_servers=True)
def bitflip_wal(scene: Scene, draw: Draw) -> Injection:
    """One bit of an entry in the middle of the log."""
    (node,) = scene.some_nodes(draw, 1)
    scene.begins()
    scene.cluster.kill(node)
    where = flip_entry(scene.cluster.data_folder(node) / "wal", random.Random(draw.seed))
    yield f"node {node}: {where}"
    come_back(scene, node)


@fault("bitflip_snapshot", rows=(7, 8), hold_s=(0.2, 0.5), recovers_s=60.0, ends_servers=True)
def bitflip_snapshot(scene: Scene, draw: Draw) -> Injection:
    """One bit of a group's newest snapshot."""
    (node,) = scene.some_nodes(draw, 1)
    scene.begins()
    scene.cluster.kill(node)
    where = flip_snapshot(scene.cluster.data_folder(node) / "snapshots", random.Random(draw.seed))
    yield f"node {node}: {where}"
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


def flip_entry(folder: Path, choice: random.Random) -> str:
    """Flips a bit in the payload of an entry that later batches follow. Says where."""
    places = []
    for path in sorted(folder.glob("*.wal")):
        data = path.read_bytes()
        headers = list(find_headers(data, 0, int(path.stem, 16)))
        last = max((header.batch for header in headers), default=0)
        places += [
            (path, header)
            for header in headers
            if header.kind is Kind.ENTRY and header.length > 0 and header.batch + 2 < last
        ]
    if not places:
        raise LabError(f"no entry in {folder} to flip a bit of")
    path, header = choice.choice(places)
    at = header.offset + HEADER_BYTES + choice.randrange(header.length)
    _flip(path, at, choice)
    return f"byte {at} of segment {header.segment:x}, entry {header.index} of group {header.group}"


def flip_snapshot(folder: Path, choice: random.Random) -> str:
    files = sorted(folder.glob("group-*/*.snapshot"))
    if not files:
        raise LabError(f"no snapshot in {folder}", "more load is needed before this fault")
    path = choice.choice(files)
    at = choice.randrange(path.stat().st_size)
    _flip(path, at, choice)
    return f"byte {at} of {path.parent.name}'s snapshot"


def _flip(path: Path, at: int, choice: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ (1 << choice.randrange(8))]))
