"""The probe of reads: `python -m paramserver.lab.chaos.reader`.

Reads the counting model linearizably, through the public client and, beside it, at each node by itself (also at one
that was paused or cut off: a leader of the past must not answer). Before each read it takes down what was acknowledged
to anybody until then, and the newest versions that reads which ended before had seen; the answer must hold all of that.
The digits' weights it reads now and then, and writes down their digests.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path

import paramserver
from paramserver.lab.chaos import counting, raw
from paramserver.lab.chaos.counting import Array
from paramserver.lab.chaos.lines import Lines, LineTail
from paramserver.wire.checksum import digest
from worker.errors import NotFound, ParameterServerError, Unavailable
from worker.model import Model

CONNECT_S = 60.0
CALL_S = 1.0
RAW_CALL_S = 0.5
"""Short: a call that waits in a paused node began before others were acknowledged; the next one proves more."""


class Known:
    """What was acknowledged, attempted and seen; one a process, used by all its threads."""

    def __init__(self, records: list[Path]) -> None:
        self._lock = threading.Lock()
        self._tails = [LineTail(path) for path in records]
        self._completed = [0] * len(records)
        self._pushed = [0] * len(records)
        self._newest = [0] * counting.BLOCKS

    def look(self) -> tuple[list[int], list[int], list[int]]:
        """By rank: steps acknowledged, steps attempted; by block: the newest version that a read has seen."""
        with self._lock:
            for rank, tail in enumerate(self._tails):
                for line in tail.read():
                    if line["event"] == "step":
                        self._completed[rank] = max(self._completed[rank], line["step"] + 1)
                    elif line["event"] == "push":
                        self._pushed[rank] = max(self._pushed[rank], line["step"] + 1)
            acknowledged, attempted = counting.bounds(self._completed, self._pushed)
            return acknowledged, attempted, list(self._newest)

    def saw(self, versions: dict[int, int]) -> None:
        with self._lock:
            for block, version in versions.items():
                self._newest[block] = max(self._newest[block], version)


class Probe:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.lines = Lines(options.record)
        self.known = Known(options.counted)

    def judge(
        self, begun_s: float, node: int, before: tuple[list[int], list[int], list[int]],
        blocks: dict[int, tuple[int, Array]],
    ) -> None:  # fmt: skip
        """Write the read down, with what was missing from it. `node` 0: the public client chose."""
        acknowledged, _, newest = before
        ended_s = time.monotonic()
        self.known.saw({block: version for block, (version, _) in blocks.items()})
        _, attempted, _ = self.known.look()
        count = counting.check_all([values for _, values in blocks.values()], acknowledged, attempted)
        behind = sum(version < max(acknowledged[0], newest[block]) for block, (version, _) in blocks.items())
        self.lines.write(
            "read", ended_s, begun=begun_s, node=node, behind=behind, missing=count.missing, extra=count.extra,
            versions=[version for version, _ in blocks.values()],
        )  # fmt: skip

    def refused(self, begun_s: float, node: int, name: str, why: str) -> None:
        self.lines.write("refused", begun=begun_s, node=node, name=name, why=why)

    def public(self, model: Model) -> None:
        """For ever."""
        while True:
            before, begun_s = self.known.look(), time.monotonic()
            try:
                weights = model.pull(consistency=paramserver.LINEARIZABLE, timeout=CALL_S)
            except ParameterServerError as error:
                self.refused(begun_s, 0, type(error).__name__, error.cause)
            else:
                values = weights["counts"].reshape(counting.BLOCKS, counting.BLOCK_ELEMENTS)
                self.judge(begun_s, 0, before, {at: (weights.versions[at], values[at]) for at in range(len(values))})
            time.sleep(self.options.pace_ms / 1000)

    def each_node(self, node: int, address: str) -> None:
        """For as long as the node is there."""
        nodes = raw.Nodes(self.addresses())
        while True:
            try:
                model = raw.Model(nodes, counting.MODEL)
            except raw.Failed as failed:
                self.refused(time.monotonic(), node, failed.code, str(failed))
                nodes.addresses.update(self.addresses())
            else:
                break
        turn = 0
        while self.addresses().get(node) == address:
            turn += 1
            group = model.groups[turn % len(model.groups)]
            before, begun_s = self.known.look(), time.monotonic()
            try:
                found = model.pull(node, group, RAW_CALL_S, min_version=0, linearizable=True)
            except raw.Failed as failed:
                self.refused(begun_s, node, failed.code, str(failed))
                if failed.code in ("FAILED_PRECONDITION", "NOT_FOUND"):  # the group moved: ask where to
                    nodes.addresses.update(self.addresses())
                    try:
                        model.describe()
                    except raw.Failed:
                        pass
            else:
                self.judge(begun_s, node, before, found)
            time.sleep(self.options.raw_pace_ms / 1000)
        nodes.close()

    def digests(self, model: Model) -> None:
        """Of the digits' blocks as they are now, by version."""
        elements = model.spec.block_bytes // 4
        while True:
            try:
                weights = model.pull(min_version=0, timeout=CALL_S)
            except ParameterServerError:
                pass
            else:
                flat = weights.flat
                found = [
                    digest([flat[start : start + elements].data.cast("B")]).hex()
                    for start in range(0, len(flat), elements)
                ]
                self.lines.write("digests", versions=list(weights.versions), digests=found)
            time.sleep(self.options.digests_ms / 1000)

    def addresses(self) -> dict[int, str]:
        return {int(node): address for node, address in json.loads(self.options.nodes.read_text()).items()}

    def run(self) -> None:
        with paramserver.connect(self.options.servers, timeout=CONNECT_S) as client:
            counts = existing(client, counting.MODEL)
            threading.Thread(target=self.public, args=(counts,), daemon=True).start()
            if self.options.digits:
                digits = existing(client, self.options.digits)
                threading.Thread(target=self.digests, args=(digits,), daemon=True).start()
            self.lines.write("start")
            watched: dict[int, str] = {}
            while True:
                for node, address in self.addresses().items():
                    if watched.get(node) != address:
                        watched[node] = address
                        threading.Thread(target=self.each_node, args=(node, address), daemon=True).start()
                time.sleep(0.2)


def existing(client: paramserver.Client, name: str) -> Model:
    """Opened for reading, once somebody has made it."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            return client.model(name, timeout=CONNECT_S)
        except (NotFound, Unavailable):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _end_all(failed: threading.ExceptHookArgs) -> None:
    """A thread that broke would leave its reads out unseen; a process that ended is seen at once."""
    threading.__excepthook__(failed)
    os._exit(1)


def main() -> None:
    threading.excepthook = _end_all
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--nodes", type=Path, required=True, help="JSON file: node -> address, now")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--counted", type=Path, nargs="+", required=True, help="records of the counting ranks")
    parser.add_argument("--digits", default="", help="the model whose digests are taken")
    parser.add_argument("--pace-ms", type=float, required=True)
    parser.add_argument("--raw-pace-ms", type=float, required=True)
    parser.add_argument("--digests-ms", type=float, required=True)
    Probe(parser.parse_args()).run()


if __name__ == "__main__":
    main()
