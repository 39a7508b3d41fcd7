"""What stands for other machines takes no CPU time from the servers."""

import subprocess
import sys
from pathlib import Path

TOLD = """
import os
from pathlib import Path
from paramserver.lab.priority import yield_to_servers
yield_to_servers()
group = Path("/proc/self/autogroup")
print(os.nice(0), group.read_text().split()[-1] if group.exists() else 19)
"""


def test_a_process_in_a_session_of_its_own_yields_to_those_of_other_sessions() -> None:
    """A nice value alone counts within a session: where the kernel groups by session, clients of nice 19 took as much
    as servers, which then missed heartbeats under overload."""
    told = subprocess.run(
        [sys.executable, "-c", TOLD],
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        cwd=Path(__file__).parents[3],
    )
    assert told.stdout.split() == ["19", "19"]
