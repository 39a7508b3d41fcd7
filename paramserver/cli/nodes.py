"""`paramserver node list|add|remove|replace|drain`.

Owns each command's words, and when it is done. Must not know: how a wish is sent.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from paramserver.cli import codes, flags
from paramserver.cli.flags import Flag
from paramserver.cli.shape import CHANGING, LOOKING, Verb, change, look, node_at, node_number, node_or_new
from paramserver.cli.text import escape, table

if TYPE_CHECKING:
    from paramserver.lab.admin import ClusterView, NodeView

SOME = "--servers 127.0.0.1:7001"


def _list(values: flags.Values) -> int:
    view = look(values)
    if values["json"]:
        print(json.dumps({"directory": view.directory, "nodes": [asdict(node) for node in view.nodes],
                          "moves": [asdict(move) for move in view.moves]}))  # fmt: skip
        return codes.OK
    rows = [
        (str(node.node), escape(node.address), answers(node), node.state, str(node.replicas),
         str(node.leads), node.node_uuid[:12], "" if node.knows_directory else "not told yet")
        for node in view.nodes
    ]  # fmt: skip
    print("\n".join(table(("node", "address", "answers", "state", "replicas", "leads", "folder", "note"), rows)))
    return codes.OK


def answers(node: NodeView) -> str:
    """Nobody expects an answer of a node that was removed."""
    return "up" if node.up else "-" if node.state == "removed" else "DOWN"


def _add(values: flags.Values) -> int:
    from paramserver.v1 import paramserver_pb2 as pb

    node, address = values["NODE"]

    def done(view: ClusterView) -> bool:
        added = view.node(node)
        told = all(one.knows_directory for one in view.nodes if one.up)
        return added is not None and added.up and told

    return change(values, pb.ReshapeRequest(add=pb.AddNode(node=node, address=address)), done)


def _remove(values: flags.Values) -> int:
    from paramserver.v1 import paramserver_pb2 as pb

    node = values["NODE"]

    def done(view: ClusterView) -> bool:
        removed = view.node(node)
        told = all(one.knows_directory for one in view.nodes if one.up)
        return removed is not None and removed.state == "removed" and told

    return change(values, pb.ReshapeRequest(remove=pb.RemoveNode(node=node)), done)


def _replace(values: flags.Values) -> int:
    from paramserver.v1 import paramserver_pb2 as pb

    old, (new, address) = values["OLD"], values["NEW"]

    def done(view: ClusterView) -> bool:
        if any(move.from_node == old for move in view.moves):
            return False
        gone = view.node(old)
        return old == new or (gone is not None and gone.state == "removed")

    return change(values, pb.ReshapeRequest(replace=pb.ReplaceNode(node=old, by=new, address=address)), done)


def _check_replace(values: flags.Values, problems: list[str]) -> None:
    new = values["NEW"]
    if new is not None and new[0] == values["OLD"] and not new[1]:
        problems.append(f"NEW '{new[0]}': the same number needs the address of its new folder: {new[0]}=host:port")


def _drain(values: flags.Values) -> int:
    from paramserver.v1 import paramserver_pb2 as pb

    node, leaders_only, undo = values["NODE"], values["leaders_only"], values["undo"]

    def done(view: ClusterView) -> bool:
        if undo:
            return not any(move.cancelled for move in view.moves)
        if leaders_only:
            return not any(group.leader_node == node for group in view.groups)
        moving = any(move.from_node == node for move in view.moves)
        return not moving and not any(node in group.nodes() for group in view.groups)

    wish = pb.ReshapeRequest(drain=pb.DrainNode(node=node, leaders_only=leaders_only, undo=undo))
    return change(values, wish, done)


def _check_drain(values: flags.Values, problems: list[str]) -> None:
    if values["leaders_only"] and values["undo"]:
        problems.append("--leaders-only and --undo: choose one")


LIST = Verb(
    "List the nodes: address, whether they answer, state, replicas and leaderships.",
    f"example:\n  paramserver node list {SOME}\n",
    LOOKING,
    "node list",
    _list,
)
ADD = Verb(
    "Admit a server that was started with --join and waits. It holds nothing until replicas are moved to it.",
    f"example:\n  paramserver node add 4=127.0.0.1:7004 {SOME}\n",
    (Flag("NODE", "its number and address: 4=host:port", node_at, metavar="N=HOST:PORT", required=True), *CHANGING),
    "node add",
    _add,
)
REMOVE = Verb(
    "Take a node out for ever. Refused while it holds replicas: drain or replace it first.",
    f"example:\n  paramserver node remove 3 {SOME}\n",
    (Flag("NODE", "its number", node_number, metavar="N", required=True), *CHANGING),
    "node remove",
    _remove,
)
REPLACE = Verb(
    "Give all replicas of a node, dead or alive, to another, and take the first one out. With the same number twice:\n"
    "the node comes back with an empty folder.",
    f"examples:\n  paramserver node replace 3 4 {SOME}\n  paramserver node replace 3 3=127.0.0.1:7003 {SOME}\n",
    (
        Flag("OLD", "the node to leave", node_number, metavar="OLD", required=True),
        Flag("NEW", "the node to take its place: 4, or 4=host:port where it waits", node_or_new, metavar="NEW",
             required=True),
        *CHANGING,
    ),
    "node replace",
    _replace,
    _check_replace,
)  # fmt: skip
DRAIN = Verb(
    "Move leaderships and replicas of a node to others. It stays empty until --undo.",
    f"examples:\n  paramserver node drain 3 {SOME} --dry-run\n  paramserver node drain 3 {SOME} --leaders-only\n",
    (
        Flag("NODE", "its number", node_number, metavar="N", required=True),
        Flag("--leaders-only", "its replicas stay; others lead"),
        Flag("--undo", "it may get replicas and leaderships again; moves under way are given up"),
        *CHANGING,
    ),
    "node drain",
    _drain,
    _check_drain,
)
