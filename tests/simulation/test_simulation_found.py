"""Seeds that once found something, each under the name of what it found.

A change of what seeds draw moves a finding to another seed, so these are no proof that it never comes back: what was
found in consensus has a directed test of its own beside the code. They are the first seeds to run again.
"""

import logging

import pytest

from paramserver.lab.simulation import campaign

FOUND = {
    "an order to make a replica that came twice swapped the machine that was looked at": (48, "ledger"),
    "a rank was told that its leader's disk is full, and nobody expected it": (200451, "training"),
    "an administrator wanted a voter to become a learner, and asked for ever": (550737, "churn"),
    "an administrator wanted a replica on a node whose disk was damaged, and asked for ever": (551914, "ledger"),
    "a rank asked a replica that will never run again for ever, because it knew it as a leader": (550795, "training"),
    "a leader whose round trips took longer than an election timeout refused every read": (700034, "ledger"),
    "a leader that was deposed and did not know it told a rank that it was too far ahead": (700323, "training"),
    "a call of a simulated server was answered in its next life, and what had waited wrote to the old log": (
        850214,
        "keeping",
    ),
}


def test_running_a_seed_leaves_the_log_levels_alone() -> None:
    """Tests that came later in the same process found nothing logged, now and then: it depended on their order."""
    logger = logging.getLogger("consensus")
    before = logger.level
    campaign.run_one(3)
    assert logger.level == before


@pytest.mark.parametrize("what", FOUND)
def test_what_was_found_stays_away(what: str) -> None:
    seed, kind = FOUND[what]
    campaign.run_one(seed, kind=kind).raise_if_failed()
