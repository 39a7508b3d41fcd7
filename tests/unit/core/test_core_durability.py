"""Reports of the disk: whatever became durable counts, however it is told (HAZARDS 29)."""

from consensus.core.interface import AppendResponse
from tests.unit.core.harness import entry, follower, only


def test_a_report_speaks_of_all_batches_before_it() -> None:
    """One sync may cover several batches, and the reports of earlier ones may be late or never come."""
    host = follower(1, term=1)
    host.append(entry(1, 2), after=(1, 1))
    host.append(entry(1, 3), after=(1, 2))
    first, second = host.writing
    host.disk.write(first)
    host.disk.write(second)
    host.core.persisted(second.persist_number)
    assert only(AppendResponse, host.drain()).match_index == 3
    host.core.persisted(first.persist_number)
    assert host.drain() == []
    assert host.core.status().flushed_index == 3
