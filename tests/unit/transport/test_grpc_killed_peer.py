"""kill -9 of a real process is seen on the control stream at once: the hint of RULES C2."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.unit.transport.network import End, Folder, addresses, until

ROOT = Path(__file__).resolve().parents[3]


def test_a_killed_process_is_noticed_at_once() -> None:
    async def main() -> float:
        members = addresses(2)
        one = End(Folder(1, activated=True), members)
        await one.start()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.unit.transport.lonely_peer", "2", *members.values(), cwd=ROOT
        )
        try:
            await until(lambda: one.inbox.connections == [(2, False)], seconds=20)
            loop = asyncio.get_running_loop()
            killed = loop.time()
            os.kill(process.pid, signal.SIGKILL)
            await until(lambda: one.inbox.connections[-1] == (2, True), seconds=5)
            return loop.time() - killed
        finally:
            if process.returncode is None:
                try:
                    process.kill()
                except ProcessLookupError:
                    pass
            await process.wait()
            await one.stop()

    # 2 to 5 ms on an idle machine; the bound leaves room for a busy one, and is far below any timeout.
    assert asyncio.run(main()) < 0.1
