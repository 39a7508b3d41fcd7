"""`paramserver group list|show|transfer|move|cancel`.

Owns each command's words, how groups are shown, and when a change is done. Must not know: how a wish is sent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from paramserver.cli import codes, flags
from paramserver.cli.codes import CommandError
from paramserver.cli.flags import Flag
from paramserver.cli.shape import (
    CHANGING,
    LOOKING,
    STAGES,
    Verb,
    change,
    group_number,
    look,
    node_number,
)
from paramserver.cli.text import SENTENCE_MAX, escape, table

if TYPE_CHECKING:
    from paramserver.lab.admin import ClusterView
    from paramserver.lab.status import Answer, GroupSnapshot, NodeSnapshot
    from paramserver.lab.stopped import Stopped

SOME = "--servers 127.0.0.1:7001"
GROUP = Flag("GROUP", "its number; 0 is the catalogue", group_number, metavar="G", required=True)


def _list(values: flags.Values) -> int:
    view = look(values)
    if values["json"]:
        print(json.dumps({"groups": [asdict(group) for group in view.groups],
                          "moves": [asdict(move) for move in view.moves],
                          "leftovers": [asdict(one) for one in view.leftovers]}))  # fmt: skip
        return codes.OK
    rows = []
    for group in view.groups:
        members = " ".join(_member(one.node, one.role) for one in group.members)
        moving = [f"{one.from_node} -> {one.to_node}" for one in view.moves if one.group == group.group]
        rows.append((str(group.group), str(group.leader_node) if group.leader_node else "none", str(group.term),
                     members, ", ".join(moving)))  # fmt: skip
    print("\n".join([*table(("group", "leader", "term", "on nodes", "moving"), rows), *underway(view)]))
    return codes.OK


def underway(view: ClusterView) -> list[str]:
    """A line for each move, and for each replica that waits to be deleted."""
    out = []
    for move in view.moves:
        state = "being given up" if move.cancelled else STAGES[move.stage]
        trouble = f": {escape(move.trouble, SENTENCE_MAX)}" if move.trouble else ""
        out += [f"group {move.group}: replica {move.replica} on node {move.to_node} is {state}{trouble}"]
    for left in view.leftovers:
        out += [f"group {left.group}: replica {left.replica} on node {left.node} is no member and waits to be deleted"]
    return out


def _member(node: int, role: str) -> str:
    return str(node) if role == "voter" else f"{node} ({role})"


def _show(values: flags.Values) -> int:
    """Asked of every node, so that it works without group 0."""
    from paramserver.lab import status
    from paramserver.lab.stopped import stopped

    group = values["GROUP"]
    answers = status.ask_all(_addresses(values), timeout_s=min(2.0, values["timeout"]))
    holding = [(node, state) for node in status.reached(answers) if (state := node.group(group)) is not None]
    if not holding:
        reached = status.reached(answers)
        if not reached:
            causes = "; ".join(f"{one.address}: {one.cause}" for one in answers if isinstance(one, status.Unreachable))
            raise CommandError(f"no server answered: {causes}", "are they running?", code=codes.UNREACHABLE)
        known = ", ".join(str(number) for number in sorted({one.group for node in reached for one in node.groups}))
        raise CommandError(f"no node holds a replica of group {group}; there are {known}", code=codes.USAGE)
    if values["json"]:
        shown = [{"node": node.node, "address": node.address, **asdict(state)} for node, state in holding]
        halt = next((asdict(one) for one in stopped(answers) if one.group == group), None)
        print(json.dumps({"group": group, "replicas": shown, "stopped": halt}))
        return codes.OK
    print("\n".join([*lines(group, holding), *stops(answers, group)]))
    return codes.OK


def _addresses(values: flags.Values) -> list[str]:
    """Of all nodes, as far as one of the servers knows them."""
    from paramserver.lab import status

    return status.everybody(values["servers"], timeout_s=min(2.0, values["timeout"]))


def lines(group: int, holding: list[tuple[NodeSnapshot, GroupSnapshot]]) -> list[str]:
    """The picture for people; the leader of the highest term tells of members and match indexes."""
    node, best = max(holding, key=lambda pair: (pair[1].leads, pair[1].term, pair[1].configuration_index))
    led = f"node {node.node} (replica {best.replica})" if best.leads else "none that answers"
    out = [f"group {group}: leader {led}, term {best.term}"]
    kind = "joint, on its way to the next" if best.joint else "in force"
    out += [f"configuration of index {best.configuration_index}, {kind}; next replica id {best.next_replica}", ""]
    rows = [
        (str(one.replica), str(one.node), one.role, str(one.match_index) if best.leads else "?")
        for one in best.members
    ]  # fmt: skip
    out += table(("replica", "node", "role", "match"), rows)
    head = ("node", "replica", "role", "term", "log", "commit", "applied", "flushed", "snapshot", "marks")
    shown = [
        (str(at.node), str(state.replica), escape(state.role), str(state.term),
         f"{state.first_index}..{state.last_index}", str(state.commit_index), str(state.applied_index),
         str(state.flushed_index), str(state.snapshot_index), marks(state))
        for at, state in holding
    ]  # fmt: skip
    out += ["", *table(head, sorted(shown, key=lambda row: int(row[0])))]
    out += [f"! node {at.node}: {escape(state.problem, SENTENCE_MAX)}" for at, state in holding if state.problem]
    return out


def stops(answers: Sequence[Answer], group: int | None = None) -> list[str]:
    """A line for each group (or for that one) that can't go on by itself, with the arithmetic and the way out."""
    from paramserver.lab.stopped import stopped

    return [f"! {_stop(one)}" for one in stopped(answers) if group in (None, one.group)]


def _stop(one: Stopped) -> str:
    voters = f"{one.voters} {'outgoing ' if one.outgoing else ''}voter{'s' if one.voters > 1 else ''}"
    causes: list[str] = []
    for nodes, words in (
        (one.forgetful, "may have forgotten acknowledged entries"),
        (one.broken, "can't run"),
        (one.silent, "gave no answer"),
    ):
        if nodes:
            whose = f"{len(nodes)}" if causes else f"{len(nodes)} of its {voters}"
            causes.append(f"{whose} {words} (node{'s' if len(nodes) > 1 else ''} {', '.join(map(str, nodes))})")
    out = f"group {one.group} has stopped: {', '.join(causes)}; {one.needed} {'are' if one.needed > 1 else 'is'} needed"
    if one.silent:
        out += f". Start node{'s' if len(one.silent) > 1 else ''} {', '.join(map(str, one.silent))} first"
        if one.forgetful:
            out += ": a sound majority fills the others again by itself"
    if one.forgetful:
        out += (
            f". {'If they are lost, only' if one.silent else 'Only'} an operator who accepts the loss can go on: stop "
            "a forgetful node, then paramserver wal accept-loss "
            f"--data-dir ITS_FOLDER --group {one.group} (docs/operations.md)"
        )
    return out


def marks(state: GroupSnapshot) -> str:
    """What else is to be known of a replica."""
    found = []
    if state.problem:
        found.append("DAMAGED")
    if state.joint:
        found.append("joint")
    if state.transferee:
        found.append(f"handing over to replica {state.transferee}")
    if state.forgetful:
        found.append("FORGETFUL")
    if state.distrusted:
        # Its core is told the same as of a disk that stands still.
        found.append("STATE WRONG (being rebuilt)")
    elif state.storage_stalled:
        found.append("DISK STALLED")
    if state.removed:
        found.append("removed")
    if state.quiesced:
        found.append("asleep")
    return ", ".join(found)


def _transfer(values: flags.Values) -> int:
    from paramserver.v1 import paramserver_pb2 as pb

    group, node = values["GROUP"], values["to"]

    def done(view: ClusterView) -> bool:
        found = view.group(group)
        return found is not None and found.leader_node == node

    return change(values, pb.ReshapeRequest(transfer=pb.TransferTo(group=group, to_node=node)), done)


def _move(values: flags.Values) -> int:
    from paramserver.lab.admin import Refused
    from paramserver.v1 import paramserver_pb2 as pb

    group, source, target = values["GROUP"], values["from"], values["to"]

    def done(view: ClusterView) -> bool:
        found = view.group(group)
        if found is None or any(move.group == group for move in view.moves):
            return False
        if target not in found.nodes():
            raise Refused(f"the move of group {group} to node {target} was given up; node {source} keeps its replica")
        return True

    wish = pb.ReshapeRequest(move=pb.MoveReplica(group=group, from_node=source, to_node=target))
    return change(values, wish, done)


def _check_move(values: flags.Values, problems: list[str]) -> None:
    if values["to"] is not None and values["to"] == values["from"]:
        problems.append(f"--from and --to are both {values['to']}")


def _cancel(values: flags.Values) -> int:
    from paramserver.v1 import paramserver_pb2 as pb

    group = values["GROUP"]
    wish = pb.ReshapeRequest(cancel=pb.CancelMove(group=group))
    return change(values, wish, lambda view: not any(move.group == group for move in view.moves))


LIST = Verb(
    "List the groups: leader, term, where their members live, what is being moved.",
    f"example:\n  paramserver group list {SOME}\n",
    LOOKING,
    "group list",
    _list,
)
SHOW = Verb(
    "Show one group: members and their roles, how far each replica is, configuration, log, marks.",
    f"example:\n  paramserver group show 1 {SOME}\n",
    (GROUP, *LOOKING),
    "group show",
    _show,
)
TRANSFER = Verb(
    "Hand the leadership of a group to a node that holds one of its voters.",
    f"example:\n  paramserver group transfer 1 --to 2 {SOME}\n",
    (GROUP, Flag("--to", "the node to lead", node_number, metavar="N", required=True), *CHANGING),
    "group transfer",
    _transfer,
)
MOVE = Verb(
    "Move a replica of a group from one node to another: a learner first, then in one joint change.",
    f"example:\n  paramserver group move 1 --from 3 --to 4 {SOME}\n",
    (
        GROUP,
        Flag("--from", "the node to leave", node_number, metavar="N", required=True),
        Flag("--to", "the node to go to", node_number, metavar="N", required=True),
        *CHANGING,
    ),
    "group move",
    _move,
    _check_move,
)
CANCEL = Verb(
    "Give up a move of a group, unless its new replica votes already.",
    f"example:\n  paramserver group cancel 1 {SOME}\n",
    (GROUP, *CHANGING),
    "group cancel",
    _cancel,
)
