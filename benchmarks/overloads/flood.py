"""Many clients in one process, with the public API alone: `python -m benchmarks.overloads.flood`.

Pushers train a model of their own each, as fast as they may; pullers pull models of the pushers of this process, one
after the other, or all of them one model. A file says how many of its pushers, and of its pullers, work now: the first
ones. Every half second it prints one JSON object: what was moved so far, and how attempts ended. Runs at a lower
priority than the servers: these clients stand for other machines.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import numpy as np

import paramserver
from paramserver.lab.priority import yield_to_servers
from paramserver.wire.errors import Refusal
from paramserver.wire.frames import BlockFrame, PushFrame
from worker.channels import GrpcNetwork
from worker.errors import DeadlineExceeded, ParameterServerError
from worker.network import PushMethod, PushStream

REPORT_S = 0.5
SETUP_TIMEOUT_S = 60.0
EARLY_MS = 5
"""Timers of an event loop may be that much early."""


class Seen:
    """How attempts of one process ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.until_s: dict[tuple[int, str, str], float] = {}
        """(client, address, what) -> when a refusal said to come again."""

    def add(self, name: str, count: int = 1) -> None:
        with self.lock:
            self.counts[name] += count

    def attempt(self, client: int, address: str, what: str) -> None:
        self.add(f"attempts_{client}")
        due_s = self.until_s.pop((client, address, what), 0.0)
        if time.monotonic() < due_s - EARLY_MS / 1000:
            self.add("came_too_early")

    def refused(self, client: int, address: str, what: str, refusal: Refusal) -> None:
        self.add(f"refused_{refusal.code}_{refusal.reason.value}")
        if refusal.code == "RESOURCE_EXHAUSTED":
            if refusal.retry_after_ms <= 0:
                self.add("refused_without_a_time")
            self.until_s[client, address, what] = time.monotonic() + refusal.retry_after_ms / 1000


class Network(GrpcNetwork):
    """Counts refusals, and whether who was refused came again too early."""

    def __init__(self, seen: Seen, client: int) -> None:
        super().__init__()
        self._seen = seen
        self._client = client

    def push(self, address: str, method: PushMethod) -> PushStream:
        return _Stream(super().push(address, method), self._seen, self._client, address)

    async def pull(self, address: str, request: Any, timeout_s: float) -> AsyncGenerator[BlockFrame, None]:
        what = f"pull {request.group}"
        self._seen.attempt(self._client, address, what)
        try:
            async for frame in super().pull(address, request, timeout_s):
                yield frame
        except Refusal as refusal:
            self._seen.refused(self._client, address, what, refusal)
            raise


class _Stream:
    def __init__(self, stream: PushStream, seen: Seen, client: int, address: str) -> None:
        self._stream, self._seen, self._client, self._address = stream, seen, client, address
        self._what = "push"

    async def send(self, frame: PushFrame) -> None:
        if frame.hello is not None:
            self._what = f"push {frame.hello.group}"
            self._seen.attempt(self._client, self._address, self._what)
        await self._stream.send(frame)

    async def receive(self) -> BlockFrame | None:
        try:
            return await self._stream.receive()
        except Refusal as refusal:
            self._seen.refused(self._client, self._address, self._what, refusal)
            raise

    def cancel(self) -> None:
        self._stream.cancel()


class Flood:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seen = Seen()
        self.active = 0
        self.changed = threading.Condition()
        self.up = threading.Semaphore(0)
        self.elements = options.model_bytes // 4

    def run(self) -> None:
        options = self.options
        pushers = [threading.Thread(target=self.push, args=(one,), daemon=True) for one in range(options.pushers)]
        for thread in pushers:
            thread.start()
        for _ in pushers:
            if not self.up.acquire(timeout=SETUP_TIMEOUT_S):
                raise SystemExit("not all pushers came up")
        for one in range(options.pullers):
            threading.Thread(target=self.pull, args=(one,), daemon=True).start()
        for _ in range(options.pullers):
            if not self.up.acquire(timeout=SETUP_TIMEOUT_S):
                raise SystemExit("not all pullers came up")
        print("ready", flush=True)
        while True:
            with self.changed:
                self.active = int(options.orders.read_text())
                self.changed.notify_all()
            time.sleep(REPORT_S)
            with self.seen.lock:
                print(json.dumps({"t": time.monotonic(), "active": self.active, **self.seen.counts}), flush=True)

    def turn(self, number: int) -> None:
        """Returns when client `number` is to work."""
        with self.changed:
            self.changed.wait_for(lambda: number < self.active)

    def name(self, number: int) -> str:
        return f"flood-{self.options.number}-{number}"

    def client(self, number: int) -> paramserver.Client:
        return paramserver.connect(
            self.options.servers, timeout=SETUP_TIMEOUT_S, network=lambda: Network(self.seen, number)
        )

    def push(self, number: int) -> None:
        client = self.client(number)
        model = client.model(
            self.name(number),
            {"weights": (self.elements,)},
            optimizer=paramserver.sgd(1e-3),
            initial=lambda: {"weights": np.zeros(self.elements, np.float32)},
            block_bytes=self.options.block_bytes,
        )
        gradient, out = model.buffer(), model.pull()
        gradient["weights"][:] = 1e-3
        if number == 0:
            gradient["weights"][0] = 1.0
        self.up.release()
        begun = ranked = False
        while True:
            self.turn(number)
            try:
                if not ranked:  # from here on it holds streams
                    model = client.model(self.name(number), rank=0)
                    ranked = True
                waiting = model.resume(timeout=self.options.patience_s) if begun else model.push_pull(
                    gradient, out=out, timeout=self.options.patience_s
                )  # fmt: skip
                begun = True
                waiting.result()
                begun = False
                self.seen.add("steps")
                self.seen.add(f"steps_{number}")
                self.seen.add("bytes", 2 * self.options.model_bytes)
            except DeadlineExceeded:
                self.seen.add("gave_up_pushing")
            except ParameterServerError as error:
                self.seen.add(f"failed_{type(error).__name__}")
                print(f"pusher {number}: {error}", file=sys.stderr, flush=True)
                return

    def pull(self, number: int) -> None:
        client = self.client(self.options.pushers + number)
        model = client.model(self.name(0 if self.options.hot else number % self.options.pushers))
        out = model.pull()
        self.up.release()
        while True:
            self.turn(number)
            try:
                model.pull(min_version=0, out=out, timeout=self.options.patience_s)
                self.seen.add("pulls")
                self.seen.add("bytes", self.options.model_bytes)
            except DeadlineExceeded:
                self.seen.add("gave_up_pulling")
            except ParameterServerError as error:
                self.seen.add(f"failed_{type(error).__name__}")
                print(f"puller {number}: {error}", file=sys.stderr, flush=True)
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--orders", type=Path, required=True, help="file with the number of clients that work")
    parser.add_argument("--number", type=int, required=True, help="of this process")
    parser.add_argument("--pushers", type=int, required=True)
    parser.add_argument("--pullers", type=int, required=True)
    parser.add_argument("--model-bytes", type=int, required=True)
    parser.add_argument("--block-bytes", type=int, required=True)
    parser.add_argument("--patience-s", type=float, default=5.0)
    parser.add_argument("--hot", action="store_true", help="all pullers pull the same model")
    yield_to_servers()
    Flood(parser.parse_args()).run()


if __name__ == "__main__":
    main()
