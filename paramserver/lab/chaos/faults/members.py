"""Leaders and members that change while training goes on, by the requests that operators' commands send."""

from __future__ import annotations

import random
import time

from paramserver.lab.chaos.kinds import Draw, Injection, absent, fault
from paramserver.lab.chaos.scene import Scene
from paramserver.lab.errors import LabError
from paramserver.v1 import paramserver_pb2 as pb

PAUSE_S = 0.15
STOP_S = 20.0


@fault("transfer_storm", rows=(21,), hold_s=(0.0, 0.0), transfers=(4, 8), ends_servers=True)
def transfer_storm(scene: Scene, draw: Draw) -> Injection:
    """Hand-overs one after the other, each to another node; in one storm of three a node to which one goes is killed
    at that moment."""
    choice = random.Random(draw.seed)
    groups, killed = scene.groups(), 0
    scene.begins()
    for number in range(round(draw["transfers"])):
        group = choice.choice(groups)
        leader = scene.leader_of(group)
        target = choice.choice([node for node in scene.members() if node != leader and node != killed])
        dies = number == 1 and choice.random() < 1 / 3
        if not dies:
            scene.acts_now()
        try:
            scene.wish(transfer=pb.TransferTo(group=group, to_node=target))
        except LabError as error:
            scene.note(f"hand-over of group {group} to node {target}: {error.cause}")
        if dies:
            scene.cluster.kill(target)
            killed = target
            scene.note(f"node {target} killed while group {group} went to it")
        time.sleep(PAUSE_S)
    yield f"groups {', '.join(map(str, groups))}"
    if killed:
        scene.cluster.start_server(killed)


@fault(
    "membership_churn", rows=(22,), hold_s=(0.0, 0.2), recovers_s=60.0, moves=(1, 2), kills=(0, 1), ends_servers=True
)
def membership_churn(scene: Scene, draw: Draw) -> Injection:
    """A node comes, replicas move to it and back, it goes again; the node that takes or gives one may be killed on the
    way, at a moment that is drawn."""
    choice = random.Random(draw.seed)
    spare = max(scene.members()) + 1
    scene.begins()
    address = scene.cluster.join(spare)
    scene.load.tell_nodes()
    scene.insist(add=pb.AddNode(node=spare, address=address))
    scene.until_view(lambda view: (found := view.node(spare)) is not None and found.up, f"node {spare} to be there")
    moved, groups = [], scene.groups()
    for group in choice.sample(groups, min(len(groups), round(draw["moves"]))):
        source = choice.choice([node for node in scene.members() if node != spare])
        scene.insist(move=pb.MoveReplica(group=group, from_node=source, to_node=spare))
        moved.append(group)
        if draw["kills"] >= 0.5:
            time.sleep(choice.uniform(0.0, 0.5))
            struck = choice.choice((spare, source))
            scene.cluster.kill(struck)
            scene.note(f"node {struck} killed while group {group} moved from node {source} to node {spare}")
            scene.cluster.start_server(struck, wait=False)
        scene.until_view(lambda view: not view.moves, f"group {group} to be moved")
    yield f"groups {', '.join(map(str, moved))} to node {spare} and back"
    scene.insist(drain=True, node=spare, leaders_only=False)
    scene.until_view(
        lambda view: not view.moves and not any(spare in group.nodes() for group in view.groups), "it to be empty"
    )
    scene.until_view(lambda view: not view.leftovers, "what is left there to be deleted")
    scene.insist(remove=pb.RemoveNode(node=spare))
    scene.cluster.retire(spare)
    scene.load.tell_nodes()


@fault("replace_node", rows=(22,), hold_s=(0.3, 0.6), recovers_s=60.0, ends_servers=True)
def replace_node(scene: Scene, draw: Draw) -> Injection:
    """A node is lost for good, and another takes its place under a number that is free."""
    (lost,) = scene.some_nodes(draw, 1)
    taken = set(scene.members())
    new = next(number for number in range(1, len(taken) + 2) if number not in taken)
    scene.begins()
    scene.cluster.kill(lost)
    yield f"node {lost}, by node {new}"
    address = scene.cluster.join(new)
    scene.insist(replace=pb.ReplaceNode(node=lost, by=new, address=address))
    scene.until_view(
        lambda view: not view.moves and ((old := view.node(lost)) is None or old.state == "removed"), "the replacement"
    )
    scene.cluster.retire(lost)
    scene.load.tell_nodes()


@fault("rolling_restart", rows=(22,), hold_s=(0.0, 0.0), recovers_s=60.0, ends_servers=True)
def rolling_restart(scene: Scene, _draw: Draw) -> Injection:
    """As operations.md has it: SIGTERM, exit code 0, start, ready, caught up; then the next."""
    scene.begins()
    for node in scene.members():
        code = scene.cluster.terminate(node)
        if code != 0:
            scene.note(f"server {node} ended with {code}")
        scene.cluster.start_server(node)
        scene.await_whole(STOP_S)
    yield "every node, one after the other"


absent(
    "rolling_upgrade",
    rows=(33,),
    why_not="there is no tagged version whose formats a later one has to read; it waits for the first",
)
