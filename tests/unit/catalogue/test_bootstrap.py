"""What nodes derive from the member list."""

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
