"""`paramserver server`: one node of a cluster.

Owns the way from flags to a `NodeConfig`. Invariant: nothing is imported that starts something, bound or written
before flags and configuration are found without a problem, all problems together. What can only be found on the way (a
port that is taken, a folder of another node) `paramserver.process` finds before it serves.
"""

from __future__ import annotations

import re

from paramserver.cli import blas, flags
from paramserver.cli.flags import Flag

DESCRIPTION = """\
Run one node. The first start of a cluster needs all members up once; afterwards a majority of them is enough.
Prints one line `ready node=... address=... cluster=...` on standard output when it serves; logs go to standard
error."""
EPILOG = """\
example, in three terminals (N = 1, 2, 3):
  paramserver server --node N --data-dir data/N \\
    --members 1=127.0.0.1:7001,2=127.0.0.1:7002,3=127.0.0.1:7003

a fourth, later; the member list stays what the cluster was begun with:
  paramserver server --node 4 --join 127.0.0.1:7004 --data-dir data/4 \\
    --members 1=127.0.0.1:7001,2=127.0.0.1:7002,3=127.0.0.1:7003
  paramserver node add 4=127.0.0.1:7004 --servers 127.0.0.1:7001
"""
_MS = 3_600_000
GROUPS_MAX = 256
"""As in catalogue.bootstrap, which is not imported for a command's help."""
_BYTES = 2**40
FLAGS = (
    Flag("--node", "this server's number in --members", flags.integer(1, 65535), metavar="N", required=True),
    Flag("--members", "all servers, the same list on each", flags.members, metavar="1=HOST:PORT,...", required=True),
    Flag("--data-dir", "this node's folder, made when missing", flags.text_value, metavar="DIR", required=True),
    Flag(
        "--join",
        "this server's address, if it comes after the cluster was begun (or with an empty folder): it waits "
        "until `paramserver node add` or `replace` admits it",
        flags.endpoint,
        metavar="HOST:PORT",
    ),
    Flag(
        "--groups",
        "data groups, over which models are spread; the same on each server, and for good [one a member]",
        flags.integer(1, GROUPS_MAX),
        metavar="N",
    ),
    Flag("--token", "sets clusters with the same members apart", flags.text_value, metavar="TEXT"),
    Flag("--listen", "address to bind, if not the one in --members", flags.endpoint, metavar="HOST:PORT"),
    Flag(
        "--peer-listen",
        "address to bind for what nodes say to each other [any free port beside --listen]",
        flags.endpoint,
        metavar="HOST:PORT",
    ),
    Flag(
        "--dial",
        "addresses of other nodes at which this one dials another instead, a proxy or a tunnel",
        flags.detours,
        metavar="HOST:PORT=HOST:PORT,...",
    ),
    Flag("--allow-remote", "bind an address that is not loopback: nothing is encrypted or authenticated yet"),
    Flag(
        "--fault-injection",
        "for tests only: make a Unix socket there by which this server's disk, clock and interpreter can be made to "
        "fail; only with an address of loopback",
        flags.text_value,
        metavar="SOCKET",
    ),
    Flag("--heartbeat-ms", "between a leader's heartbeats [50]", flags.integer(1, _MS), metavar="MS"),
    Flag("--election-timeout-ms", "silence before a follower campaigns [300]", flags.integer(1, _MS), metavar="MS"),
    Flag(
        "--prefer-after-ms",
        "how long a group's first server must be well before it leads again; 0: it need not [5000]",
        flags.integer(0, _MS),
        metavar="MS",
    ),
    Flag("--lease-ms", "how long a silent worker keeps its rank [10000]", flags.integer(1, _MS), metavar="MS"),
    Flag(
        "--durability",
        "when updates are acknowledged: fsync, once a majority has them on disk; replicated, once a majority has "
        "written them: lost when a majority of machines stops at once; the same on all nodes [fsync]",
        flags.text_value,
        metavar="MODE",
    ),
    Flag(
        "--zone",
        "label of where this server stands (a rack, a data centre): workers of the same zone may prefer it for pulls",
        flags.text_value,
        metavar="LABEL",
    ),
    Flag("--segment-bytes", "size of a segment of the log", flags.integer(1, _BYTES), metavar="BYTES"),
    Flag("--snapshot-log-bytes-min", "no snapshot for less log than this", flags.integer(0, _BYTES), metavar="BYTES"),
    Flag(
        "--snapshot-log-bytes-max",
        "a snapshot at the latest for so much log, or the state's size [256 MiB]",
        flags.integer(1, _BYTES),
        metavar="BYTES",
    ),
    Flag("--window-blocks", "blocks of a model summed at once, a group [16]", flags.integer(1, _BYTES), metavar="N"),
    Flag("--window-bytes", "contributions in open sums [256 MiB]", flags.integer(1, _BYTES), metavar="BYTES"),
    Flag(
        "--uncommitted-bytes-max",
        "log of a group that is not committed yet [64 MiB]",
        flags.integer(1, _BYTES),
        metavar="BYTES",
    ),
    Flag(
        "--stream-window-bytes",
        "what may be sent ahead on a stream that is not read [4 MiB]",
        flags.integer(1, _BYTES),
        metavar="BYTES",
    ),
    Flag("--streams-max", "push streams [256]", flags.integer(1, _BYTES), metavar="N"),
    Flag("--pulls-max", "pulls at a time [1024]", flags.integer(1, _BYTES), metavar="N"),
    Flag("--calls-max", "calls and streams of clients at a time [4096]", flags.integer(1, _BYTES), metavar="N"),
    Flag("--connections-max", "connections of clients at a time [1024]", flags.integer(1, _BYTES), metavar="N"),
    Flag("--pulls-bytes-max", "blocks being written to pulls [256 MiB]", flags.integer(1, _BYTES), metavar="BYTES"),
    Flag(
        "--replies-bytes-max",
        "weights that wait to be written to push streams [256 MiB]",
        flags.integer(1, _BYTES),
        metavar="BYTES",
    ),
    Flag(
        "--reader-timeout-ms",
        "a reader that takes nothing for so long is ended [10000]",
        flags.integer(1, _MS),
        metavar="MS",
    ),
)
KEYS = tuple(flag.key for flag in FLAGS)
PLACE = "127.0.0.1:1"
"""Stands in for addresses that could not be read, so that the rest of the configuration is still checked."""


def run(values: flags.Values, problems: list[str]) -> int:
    blas.one_thread()
    from paramserver.config import NodeConfig

    settings = values.set_ones(KEYS)
    # What is missing or unreadable is a problem already; something sound in its place lets the others be found as well.
    if "members" not in settings:
        settings["members"] = {settings.get("node", 1): PLACE}
    if "node" not in settings:
        settings["node"] = min(settings["members"])
    settings.setdefault("data_dir", "data")
    config = NodeConfig(**settings)
    problems += [in_flags(problem) for problem in config.validate()]
    flags.raise_problems(problems, "server")

    from paramserver import process

    return process.run(config)


def in_flags(problem: str) -> str:
    """Names of fields as the flags they come from."""
    for flag in FLAGS:
        if "_" in flag.key:
            problem = re.sub(rf"(?<![\w-]){flag.key}\b", flag.name, problem)
    return problem
