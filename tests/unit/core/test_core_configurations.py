"""The configurations of a log: in force on append, back on truncation, replaced by a snapshot (HAZARDS 19, 20)."""

import pytest

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Configuration, EntryKind, HardState
from consensus.core.raft.membership import Membership, Standing
from tests.unit.core.harness import THREE, Disk, Host, configuration_entry, entry, follower, log_of, meta, offer

FOUR = Configuration((1, 2, 3), learners=(4,), next_replica=5)
JOINT = Configuration((1, 2, 4), outgoing=(1, 2, 3), next_replica=5)
LATER = Configuration((1, 2, 4), next_replica=5)


def in_force(host: Host) -> tuple[Configuration | None, int]:
    status = host.core.status()
    return status.configuration, status.configuration_index


def test_a_configuration_is_in_force_once_appended_and_before_it_is_durable_or_committed() -> None:
    host = follower(1, replica=2)
    host.append(configuration_entry(1, 2, FOUR), entry(1, 3), after=(1, 1))
    assert in_force(host) == (FOUR, 2)
    assert host.core.status().commit_index == 0


def test_truncation_brings_the_one_before_back() -> None:
    host = follower(1, replica=2)
    host.append(configuration_entry(1, 2, FOUR), configuration_entry(1, 3, JOINT), after=(1, 1))
    assert in_force(host) == (JOINT, 3)
    host.append(entry(2, 3), after=(1, 2), term=2, sender=3)
    assert in_force(host) == (FOUR, 2)
    host.append(entry(3, 1), term=3, sender=1)
    assert in_force(host) == (THREE, 0)


def test_truncation_and_a_new_configuration_in_one_request() -> None:
    host = follower(1, replica=2)
    host.append(configuration_entry(1, 2, FOUR), after=(1, 1))
    host.append(entry(2, 2), configuration_entry(2, 3, JOINT), after=(1, 1), term=2, sender=3)
    assert in_force(host) == (JOINT, 3)


def test_late_duplicates_change_nothing() -> None:
    host = follower(1, replica=2)
    entries = (configuration_entry(1, 2, FOUR), configuration_entry(1, 3, JOINT))
    host.append(*entries, after=(1, 1))
    host.append(entries[0], after=(1, 1))
    assert in_force(host) == (JOINT, 3)


def test_a_snapshot_leaves_no_uncommitted_configuration_behind() -> None:
    host = follower(1, replica=2)
    host.append(configuration_entry(1, 2, FOUR), configuration_entry(1, 3, JOINT), after=(1, 1))
    host.step(offer(host, meta(5, 2, FOUR), term=2))
    assert in_force(host) == (FOUR, 5)


def test_a_snapshot_of_what_the_log_holds_leaves_a_later_configuration_in_force() -> None:
    host = follower(1, 1, replica=2)
    host.append(configuration_entry(1, 3, FOUR), after=(1, 2))
    host.step(offer(host, meta(2, 1)))
    assert in_force(host) == (FOUR, 3)


def test_a_new_life_goes_on_with_the_configuration_of_its_log() -> None:
    host = follower(1, replica=2)
    host.append(configuration_entry(1, 2, FOUR), entry(1, 3), after=(1, 1))
    host.persist()
    host.start()
    assert in_force(host) == (FOUR, 2)
    host.append(entry(2, 2), after=(1, 1), term=2, sender=3)
    assert in_force(host) == (THREE, 0)


def test_a_new_life_on_a_snapshot_begins_with_its_configuration() -> None:
    kept = [*log_of(1, 1), configuration_entry(1, 3, JOINT), configuration_entry(1, 4, LATER)]
    host = Host(2, disk=Disk(HardState(1, 0, 3), kept, meta(3, 1, JOINT)))
    assert in_force(host) == (LATER, 4)


def test_a_recovered_configuration_that_does_not_decode_ends_the_process() -> None:
    disk = Disk(HardState(1), [entry(1, 1, b"garbage", kind=EntryKind.CONFIGURATION)])
    with pytest.raises(InvariantViolated, match="configuration entry 1"):
        Host(2, disk=disk)


def test_a_snapshot_carries_the_configuration_of_its_index_and_no_other() -> None:
    host = follower(1, replica=2)
    host.append(configuration_entry(1, 2, FOUR), entry(1, 3), configuration_entry(1, 4, JOINT), after=(1, 1), commit=3)
    host.persist()
    for wrong in (THREE, JOINT):
        with pytest.raises(InvariantViolated, match="snapshot at 3"):
            host.core.compact(meta(3, 1, wrong), keep_from=2)
    host.core.compact(meta(3, 1, FOUR), keep_from=2)
    assert in_force(host) == (JOINT, 4)


def test_standing_of_who_leaves_and_who_comes() -> None:
    membership = Membership(1, THREE)
    assert membership.standing(3, commit_index=0) is Standing.MEMBER
    assert membership.standing(4, commit_index=0) is Standing.UNKNOWN
    for index, configuration in ((5, FOUR), (6, JOINT), (7, LATER)):
        membership.appended(configuration_entry(1, index, configuration))
    # Not known to be committed yet: 3 may come back, and may be the leader that leads until it is.
    assert membership.standing(3, commit_index=6) is Standing.MEMBER
    assert membership.standing(3, commit_index=7) is Standing.REMOVED
    assert membership.standing(4, commit_index=7) is Standing.MEMBER
    assert membership.standing(5, commit_index=7) is Standing.UNKNOWN


def test_what_lay_below_a_snapshot_is_not_known_any_more() -> None:
    membership = Membership(1, THREE)
    membership.appended(configuration_entry(1, 5, FOUR))
    membership.compacted(5)
    assert membership.at(5) == FOUR
    with pytest.raises(InvariantViolated, match="configuration at 4 is not known any more"):
        membership.at(4)
