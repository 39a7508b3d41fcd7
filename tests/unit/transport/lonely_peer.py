"""A process with one transport end, to be killed: `python -m tests.unit.transport.lonely_peer NODE ADDRESS...`"""

import asyncio
import sys

from tests.unit.transport.network import End, Folder


async def main(node: int, members: dict[int, str]) -> None:
    end = End(Folder(node, activated=True), members)
    await end.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), dict(enumerate(sys.argv[2:], start=1))))
