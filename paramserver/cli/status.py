"""`paramserver status`: what every node says of itself.

Owns how it is shown. Invariant: a node that gives no answer is a line of the picture, not the end of it; only when none
answers the command fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from paramserver.cli import codes, flags, load
from paramserver.cli.codes import CommandError
from paramserver.cli.flags import Flag
from paramserver.cli.groups import marks, stops, underway
from paramserver.cli.text import SENTENCE_MAX, escape, table

if TYPE_CHECKING:
    from paramserver.lab.admin import ClusterView
    from paramserver.lab.status import Answer, BlockSnapshot, GroupSnapshot, NodeSnapshot, Unreachable

DESCRIPTION = (
    "Show nodes, groups, leaders, terms, commit and applied index, bytes and load, block versions, and whether digests "
    "are equal."
)
EPILOG = "example:\n  paramserver status --servers 127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003\n"
FLAGS = (
    Flag("--servers", "where the servers listen", flags.endpoints, metavar="HOST:PORT,...", required=True),
    Flag("--blocks", "also a line for every block on every replica, with version and digest"),
    Flag("--json", "one JSON object instead of tables"),
    Flag("--timeout", "seconds to wait for a node", flags.number(0.05, 600), 2.0, "SECONDS"),
)
CATALOGUE_GROUP = 0
SURVEY_S = 1.5
"""What group 0's leader takes more than another node: it asks all nodes, and waits a second for silent ones."""
ROLES_SHOWN = ("voter", "learner", "incoming", "outgoing")
DIGEST_SHOWN = 12
"""Characters of a digest in tables; --json has all."""


def run(values: flags.Values, problems: list[str]) -> int:
    flags.raise_problems(problems, "status")
    from paramserver.lab import status

    addresses = status.everybody(values["servers"], timeout_s=values["timeout"])
    answers = status.ask_all(addresses, blocks=True, timeout_s=values["timeout"])
    answers = status.named(answers, timeout_s=values["timeout"])
    leader = status.leader_of(answers, CATALOGUE_GROUP)
    view = placement(leader.address, values["timeout"] + SURVEY_S) if leader is not None else None
    if values["json"]:
        print(json.dumps(as_json(answers, view)))
    elif status.reached(answers):
        print("\n".join(lines(answers, blocks=values["blocks"], view=view)))
    if not status.reached(answers):
        raise CommandError(
            "no server answered: "
            + "; ".join(f"{answer.address}: {answer.cause}" for answer in answers if not hasattr(answer, "groups")),
            "are the servers running, and are these their addresses? (paramserver server --help)",
            code=codes.UNREACHABLE,
        )
    return codes.OK


def placement(leader: str, timeout_s: float) -> ClusterView | None:
    """As group 0's leader sees it; None: it does not answer."""
    from paramserver.lab.admin import Admin, AdminError

    try:
        return Admin([leader], timeout_s=timeout_s).members()
    except AdminError:
        return None


def as_json(answers: Sequence[Answer], view: ClusterView | None = None) -> dict[str, Any]:
    """`nodes`: snapshots of those that answered; `unreachable`: the others, with the reason; `leaders`: group -> node;
    `placement`: nodes with their states, members of groups and moves, as group 0's leader sees them (null: nobody
    leads it); `stopped`: groups that lack a majority of voters that may vote; `load`: what groups and nodes hold, lead
    and do."""
    from paramserver.lab import status
    from paramserver.lab.stopped import stopped

    return {
        "placement": asdict(view) if view is not None else None,
        "nodes": [asdict(node) for node in status.reached(answers)],
        "unreachable": [asdict(answer) for answer in answers if isinstance(answer, status.Unreachable)],
        "leaders": {str(group): node for group, node in status.leaders(answers).items()},
        "stopped": [asdict(one) for one in stopped(answers)],
        "load": load.as_json(answers),
    }


def lines(answers: Sequence[Answer], *, blocks: bool = False, view: ClusterView | None = None) -> list[str]:
    """The picture for people."""
    from paramserver.lab import status

    nodes = status.reached(answers)
    out = [f"cluster {escape(nodes[0].cluster)}" if nodes else "cluster unknown", ""]
    node_head = ("node", "address", "state", "incarnation", "version")
    out += table(node_head, [*(_node(answer, view) for answer in answers), *_removed(answers, view)])
    foreign = sorted({node.cluster for node in nodes})
    if len(foreign) > 1:
        out += ["", f"! these servers belong to {len(foreign)} different clusters: {', '.join(map(escape, foreign))}"]
    out += _loads(nodes)
    leaders = status.leaders(answers)
    out += _members(nodes, leaders, view)
    head = ("group", "node", "role", "leader", "term", "commit", "applied", "last", "snapshot", "state", "note")
    rows = [
        _group(node, group, leaders)
        for node in nodes
        for group in node.groups
    ]  # fmt: skip
    out += ["", *table(head, sorted(rows, key=lambda row: (int(row[0]), int(row[1]))))]
    out += load.lines(answers)
    out += _models(nodes)
    if blocks:
        out += _blocks(nodes)
    problems = stops(answers)
    problems += [
        f"! node {node.node}, group {group.group}: "
        f"{escape(group.problem.removeprefix(f'group {group.group}: '), SENTENCE_MAX)}"
        for node in nodes
        for group in node.groups
        if group.problem
    ]
    problems += [
        f"! node {node.node}: {escape(alarm, SENTENCE_MAX)}"
        for node in nodes
        for alarm in node.alarms
        if not any(group.problem and group.problem in alarm for group in node.groups)  # told already
    ]
    if problems:
        out += ["", *problems]
    return out


def _loads(nodes: Sequence[NodeSnapshot]) -> list[str]:
    """How late each node's loop was in the last minute, what is open there, and its memory beside what bounds it."""
    head = ("node", "lag ms p50", "p99", "max", "push streams", "pulls", "calls", "memory", "bound")
    rows = [
        (
            str(node.node),
            *(f"{node.gauges[f'loop_lag_ms_{which}_1m']:.1f}" for which in ("p50", "p99", "max")),
            *(f"{node.gauges[what]:.0f}" for what in ("push_streams", "pulls", "calls")),
            *(load.size(int(node.gauges[what])) for what in ("memory_bytes", "memory_bytes_bound")),
        )
        for node in nodes
        if {"loop_lag_ms_p99_1m", "memory_bytes_bound"} <= node.gauges.keys()
    ]
    return ["", *table(head, rows)] if rows else []


def _members(nodes: Sequence[NodeSnapshot], leaders: dict[int, int], view: ClusterView | None) -> list[str]:
    """Who belongs to each group, told by the replica that knows best, and what is being moved."""
    rows = []
    for group in sorted({state.group for node in nodes for state in node.groups if state.members}):
        known = [state for node in nodes for state in node.groups if state.group == group and state.members]
        best = max(known, key=lambda state: (state.leads, state.term, state.configuration_index))
        by_role = {role: [one.node for one in best.members if one.role == role] for role in ROLES_SHOWN}
        joint = [f"node {node} enters" for node in by_role["incoming"]]
        joint += [f"node {node} leaves" for node in by_role["outgoing"]]
        rows.append((str(group), str(leaders.get(group) or "none"), _listed(by_role["voter"]),
                     _listed(by_role["learner"]), ", ".join(joint) or ("yes" if best.joint else "-")))  # fmt: skip
    out = ["", *table(("group", "leader", "voters", "learners", "joint"), rows)] if rows else []
    if view is None:
        return [*out, "group 0 has no leader that answers: what is being moved is not known"]
    return out + underway(view)


def _listed(nodes: Sequence[int]) -> str:
    return " ".join(map(str, nodes)) or "-"


def _removed(answers: Sequence[Answer], view: ClusterView | None) -> list[tuple[str, ...]]:
    """Nodes that are not asked any more."""
    asked = {answer.address for answer in answers}
    nodes = view.nodes if view is not None else ()
    return [
        (str(node.node), escape(node.address), "removed", "", "")
        for node in nodes
        if node.state == "removed" and node.address not in asked
    ]


def _node(answer: NodeSnapshot | Unreachable, view: ClusterView | None = None) -> tuple[str, ...]:
    from paramserver.lab import status

    known = next((one for one in view.nodes if one.address == answer.address), None) if view is not None else None
    if isinstance(answer, status.Unreachable):
        number = answer.node or (known.node if known is not None else 0)
        cause = f"UNREACHABLE ({escape(answer.cause)})"
        if known is not None and known.state != "active":
            cause = "removed" if known.state == "removed" else f"{known.state}, {cause}"
        return (str(number or "?"), escape(answer.address), cause, "", "")
    damaged = sum(1 for group in answer.groups if group.problem)
    state = {"serving": "up", "waiting": "WAITING to be admitted", "removed": "REMOVED"}.get(answer.state, answer.state)
    if damaged:
        state += f", {damaged} replica{'s' if damaged > 1 else ''} not well"
    if answer.disk_full:
        state += ", DISK FULL"
    if known is not None and known.node_uuid == answer.node_uuid and known.state in ("draining", "no leaders"):
        state += f", {known.state}"
    return (str(answer.node), escape(answer.address), state, str(answer.incarnation), escape(answer.version))


def _group(node: NodeSnapshot, group: GroupSnapshot, leaders: dict[int, int]) -> tuple[str, ...]:
    leader = leaders.get(group.group, group.leader_node)
    return (
        str(group.group),
        str(node.node),
        escape(group.role) or "-",
        str(leader) if leader else "none",
        str(group.term),
        str(group.commit_index),
        str(group.applied_index),
        str(group.last_index),
        str(group.snapshot_index),
        load.size(group.state_bytes),
        marks(group),
    )


def _models(nodes: Sequence[NodeSnapshot]) -> list[str]:
    # Every replica of group 0 tells of the models; the one that applied most tells best.
    telling = [node for node in nodes if node.models]
    if not telling:
        return ["", "no models yet"]

    def applied(node: NodeSnapshot) -> int:
        group = node.group(0)
        return group.applied_index if group is not None else -1

    rows = []
    for model in max(telling, key=applied).models:
        ranks = " ".join(f"{rank.rank}:{'held' if rank.held else 'free'}" for rank in model.ranks)
        shards = " ".join(f"{shard.group}:{shard.blocks}" for shard in model.shards)
        blocks = [
            block
            for node in nodes
            for group in node.groups
            for block in group.blocks
            if block.model == model.model
        ]  # fmt: skip
        versions = sorted({block.version for block in blocks})
        shown = "" if not versions else str(versions[-1]) if len(versions) == 1 else f"{versions[0]}..{versions[-1]}"
        row = (escape(model.name), str(model.model), str(model.generation), "open" if model.open else "filling")
        rows.append((*row, str(model.parameters), str(model.view), ranks, shards, shown, _digests(blocks)))
    head = ("model", "id", "generation", "state", "parameters", "view", "ranks", "group:blocks", "version", "digests")
    return ["", *table(head, rows)]


def _digests(blocks: Sequence[BlockSnapshot]) -> str:
    """Whether replicas that show the same version of a block show the same digest (RULES D1)."""
    seen: dict[tuple[int, int], set[str]] = {}
    for block in blocks:
        if block.digest:
            seen.setdefault((block.block, block.version), set()).add(block.digest)
    odd = sorted({block for (block, _), digests in seen.items() if len(digests) > 1})
    if odd:
        return f"DIFFER in block{'s' * (len(odd) > 1)} {', '.join(map(str, odd))}"
    return "equal" if seen else ""


def _blocks(nodes: Sequence[NodeSnapshot]) -> list[str]:
    rows = []
    for node in nodes:
        for group in node.groups:
            for block in group.blocks:
                key = (block.model, group.group, block.block, node.node)
                rows.append((key, str(block.version), escape(block.digest)[:DIGEST_SHOWN]))
    shown = [(*map(str, key), version, digest) for key, version, digest in sorted(rows)]
    return ["", *table(("model", "group", "block", "node", "version", "digest"), shown)]
