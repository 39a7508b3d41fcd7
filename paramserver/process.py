"""The life of a server's process, from its configuration to its exit code.

Owns the order of starting and stopping what is of the process and not of the node: signals, logging, port, folder.
Invariants: the port is bound and the configuration found sound before the data folder is touched; whatever was opened
is let go again. Must not know: what a node is made of.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterable

import grpc.aio

from consensus.storage.errors import EXIT_STORAGE_FAILED, IdentityMismatch, StorageError, UnknownFormat
from consensus.storage.filesystem import OsFileSystem
from consensus.transport.grpc.arguments import server_options
from consensus.transport.options import TransportOptions
from paramserver.config import NodeConfig
from paramserver.disk import CannotUse, Disk
from paramserver.injection.control import Injection
from paramserver.node import Node
from paramserver.starting import CannotStart, bind, check_address
from paramserver.wire.allocator import collect_seldom, keep_memory

log = logging.getLogger("paramserver")

EXIT_OK = 0
EXIT_CONFIGURATION = 2
"""Configuration, a port that is taken, a folder of another node: nothing was served."""
MESSAGE_BYTES_MAX = (4 << 20) + (64 << 10)
"""A message from anybody: 4 MiB of content and its header. Larger ones are refused before memory is taken for them."""
CALLS_MAX = 8192
"""Calls and streams served at a time, other nodes' too; gRPC refuses further ones. Clients are refused before, with a
time to retry (`NodeConfig.calls_max`), so that nodes always reach each other."""
IDLE_MS = 600_000
"""A connection without a call for so long is closed."""


def run(config: NodeConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. What is wrong is said on standard error."""
    problems = config.validate()
    if problems:
        _say(problems)
        return EXIT_CONFIGURATION
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    log.info(keep_memory())
    collect_seldom()
    try:
        return asyncio.run(_serve(config))
    except (CannotStart, CannotUse) as error:
        _say([str(error)])
        return EXIT_CONFIGURATION
    except (IdentityMismatch, UnknownFormat) as error:
        _say([str(error)])
        return EXIT_CONFIGURATION
    except StorageError as error:
        _say([str(error)])
        return EXIT_STORAGE_FAILED


def _say(problems: Iterable[str]) -> None:
    for problem in problems:
        print(f"paramserver server: {problem}", file=sys.stderr)


async def _serve(config: NodeConfig) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    transport_options = TransportOptions(
        message_bytes_max=MESSAGE_BYTES_MAX, stream_window_bytes=config.stream_window_bytes
    )
    arguments = [*server_options(transport_options), ("grpc.max_connection_idle_ms", IDLE_MS)]
    server = grpc.aio.server(options=arguments, maximum_concurrent_rpcs=CALLS_MAX)
    check_address(config.bind)
    bind(server, config.bind)
    injection = _injection(config)
    if injection is not None:
        injection.watch(loop)
    disk = Disk.open(config, None if injection is None else injection.filesystem(OsFileSystem()))
    try:
        node = Node(config, disk, server, transport_options, loop, injection)
        try:
            await node.start(stop)
            await node.serve(stop)
        finally:
            await node.stop()
    finally:
        disk.lock.release()
        if injection is not None:
            injection.close()
    return EXIT_OK


def _injection(config: NodeConfig) -> Injection | None:
    if not config.fault_injection:
        return None
    try:
        return Injection(config.fault_injection)
    except OSError as error:
        raise CannotStart(f"cannot make the socket {config.fault_injection!r}: {error.strerror or error}") from None
