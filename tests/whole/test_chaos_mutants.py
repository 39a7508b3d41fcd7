"""The tester is tested: real clusters whose servers have a known bug, and the run of faults that must find it."""

from __future__ import annotations

import pytest

from tests.mutations.servers import BROKEN, Broken, found, run


@pytest.mark.timeout(150)
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.mutation)
def test_a_broken_server_is_caught(broken: Broken) -> None:
    result = run(broken)
    assert found(broken, result), "\n".join(result.problems)
    assert not result.passed
