"""The whole system while replicas move (FAULTS 22 and 30, in whole): every update exactly once and on every replica the
reference run's bits, through moves, drains, replacements and hand-overs, crashes and cuts."""

from collections import Counter

from paramserver.lab.simulation.system import run_reshaped_seed

SEEDS = range(8)


def test_replicas_that_move_end_with_the_bits_of_the_reference_run() -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        report = run_reshaped_seed(seed)
        report.raise_if_failed()
        counts.update(report.counts)
    for kind in ("move", "drain", "transfer"):
        assert counts[f"wish to {kind} granted"], f"no seed sees a {kind}"


def test_seed_207_where_a_move_of_a_node_that_is_replaced_is_cancelled() -> None:
    """It keeps that replica, and is not removed: nobody asked again."""
    report = run_reshaped_seed(207)
    report.raise_if_failed()
    assert report.counts["wish to replace granted"]
    assert report.counts["wish to cancel granted"]


def test_seed_200463_where_a_node_whose_disk_was_damaged_is_to_get_replicas() -> None:
    """It refuses to make them, as it must (RULES W7): these moves wait for somebody who cancels them or replaces the
    node, and nobody does."""
    report = run_reshaped_seed(200463)
    report.raise_if_failed()
    assert report.counts["wish to move granted"]
    assert report.faults["misdirected write"]


def test_the_same_seed_gives_the_same_run() -> None:
    assert run_reshaped_seed(0).trace_hash == run_reshaped_seed(0).trace_hash
