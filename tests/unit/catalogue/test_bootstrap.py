"""What nodes derive from the member list."""

from collections import Counter

import pytest

from paramserver.catalogue import bootstrap

THREE = {1: "a:1", 2: "b:2", 3: "c:3"}


def test_three_nodes() -> None:
    voters = {group: configuration.voters for group, configuration in bootstrap.layout(THREE).items()}
    assert voters == {0: (1, 2, 3), 1: (1, 2, 3), 2: (2, 3, 1), 3: (3, 1, 2)}


def test_one_node() -> None:
    voters = {group: configuration.voters for group, configuration in bootstrap.layout({4: "a:1"}).items()}
    assert voters == {0: (4,), 1: (4,)}


def test_seven_nodes_have_five_in_the_catalogue_and_three_a_data_group() -> None:
    layout = bootstrap.layout({node: f"h:{node}" for node in range(1, 8)})
    assert layout[0].voters == (1, 2, 3, 4, 5)
    assert layout[6].voters == (6, 7, 1)
    assert len(layout) == 8


def test_the_cluster_id_depends_on_members_and_token_but_not_on_their_order() -> None:
    reordered = dict(reversed(THREE.items()))
    assert bootstrap.cluster_id(THREE, "t") == bootstrap.cluster_id(reordered, "t")
    others = [bootstrap.cluster_id(THREE, "u"), bootstrap.cluster_id({**THREE, 3: "c:4"}, "t")]
    assert len({bootstrap.cluster_id(THREE, "t"), *others}) == 3
    assert len(bootstrap.cluster_id(THREE, "")) == 16


def test_the_number_of_groups_belongs_to_the_clusters_id_unless_it_is_one_a_node() -> None:
    ids = [bootstrap.cluster_id(THREE, "t", groups) for groups in (0, 3, 1, 4, 13)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


@pytest.mark.parametrize(("nodes", "groups"), [(3, 1), (3, 4), (3, 6), (3, 16), (5, 16), (2, 4), (1, 3), (7, 70)])
def test_leaders_and_replicas_are_spread_evenly_however_many_groups(nodes: int, groups: int) -> None:
    members = {node: f"h:{node}" for node in range(1, nodes + 1)}
    layout = bootstrap.layout(members, groups)
    assert bootstrap.data_groups(members, groups) == tuple(range(1, groups + 1))
    data = [layout[group].voters for group in bootstrap.data_groups(members, groups)]
    assert all(len(set(voters)) == len(voters) == min(3, nodes) for voters in data)
    leads = Counter(voters[0] for voters in data)
    assert max(leads.values()) - min(leads[node] for node in members) <= 1
    holds = Counter(node for voters in data for node in voters)
    assert max(holds.values()) - min(holds[node] for node in members) <= min(3, nodes)


def test_what_a_dead_node_led_goes_to_all_of_its_neighbours() -> None:
    layout = bootstrap.layout(THREE, 6)
    heirs = Counter(voters[1] for voters in (layout[group].voters for group in range(1, 7)) if voters[0] == 2)
    assert heirs == {1: 1, 3: 1}
