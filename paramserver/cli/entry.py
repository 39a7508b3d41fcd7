"""From a command line to a subcommand, and from its errors to two lines and an exit code.

Invariants: flags are checked as a whole before anything is imported that could start something; no traceback reaches a
user for what is not a defect (`PARAMSERVER_TRACEBACK=1` shows it all the same). Must not import anything heavy.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from paramserver.cli import codes, flags
from paramserver.cli.codes import CommandError, UsageProblems
from paramserver.cli.text import escape


@dataclass(frozen=True, slots=True)
class Command:
    """`paramserver NAME`; its module is only imported when it is called. A name may be of two words; a module may hold
    several, each as a value: "module:VALUE"."""

    name: str
    help: str
    module: str


COMMANDS = (
    Command("demo", "three servers, two workers, two faults: the same bits as without", "paramserver.cli.demo"),
    Command("server", "one node of a cluster", "paramserver.cli.server"),
    Command("worker", "train the bundled model on a cluster, as one rank", "paramserver.cli.worker"),
    Command("launch", "a training script of yours N times, each with its rank", "paramserver.cli.launch"),
    Command("status", "nodes, groups, leaders, versions, digests", "paramserver.cli.status"),
    Command("node list", "the nodes of a cluster and their states", "paramserver.cli.nodes:LIST"),
    Command("node add", "admit a server that waits", "paramserver.cli.nodes:ADD"),
    Command("node remove", "take a node out that holds nothing", "paramserver.cli.nodes:REMOVE"),
    Command("node replace", "give a node's replicas to another, or to its new folder", "paramserver.cli.nodes:REPLACE"),
    Command("node drain", "move leaderships and replicas away from a node", "paramserver.cli.nodes:DRAIN"),
    Command("group list", "the groups, their members and leaders, and what is moving", "paramserver.cli.groups:LIST"),
    Command("group show", "one group in full", "paramserver.cli.groups:SHOW"),
    Command("group transfer", "hand a group's leadership over", "paramserver.cli.groups:TRANSFER"),
    Command("group move", "move a replica to another node", "paramserver.cli.groups:MOVE"),
    Command("group cancel", "give a move up", "paramserver.cli.groups:CANCEL"),
    Command("chaos run", "inject faults into a cluster under load, and judge it", "paramserver.cli.chaos:RUN"),
    Command("chaos soak", "the same for long, and watch servers for growth", "paramserver.cli.chaos:SOAK"),
    Command("chaos report", "a chaos run as one HTML page with pictures", "paramserver.cli.chaos_report"),
    Command("model list", "the models of a cluster", "paramserver.cli.models:LIST"),
    Command("model show", "one model in full", "paramserver.cli.models:SHOW"),
    Command("model save", "save a model at one step while it trains", "paramserver.cli.models:SAVE"),
    Command("model load", "load a model that was saved", "paramserver.cli.models:LOAD"),
    Command("model delete", "delete a model on all servers", "paramserver.cli.models:DELETE"),
    Command("sim run", "simulate clusters under faults, one a seed, and check them", "paramserver.cli.sim_run"),
    Command("sim replay", "one seed of the simulator again, exactly", "paramserver.cli.sim_replay"),
    Command("wal verify", "whether a node's log is whole, without its server", "paramserver.cli.wal_verify"),
    Command("wal dump", "the records of a node's log, without its server", "paramserver.cli.wal_dump"),
    Command(
        "wal accept-loss",
        "have a stopped node's forgetful replica take part again, naming what is lost",
        "paramserver.cli.wal_accept_loss",
    ),
    Command(
        "snapshot verify", "whether a node's snapshots are whole, without its server", "paramserver.cli.snapshot_verify"
    ),
)


class Subcommand(Protocol):
    """What a subcommand's module has."""

    DESCRIPTION: str
    EPILOG: str
    FLAGS: tuple[flags.Flag, ...]

    def run(self, values: flags.Values, problems: list[str]) -> int:
        """`problems` are those of single flags; the module adds its own and raises them together."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageProblems([message], f"{self.prog} --help shows the flags")


def run(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    open_standard_streams()
    return flushed(_run(words))


def open_standard_streams() -> None:
    """A standard stream that was closed (`>&-`) becomes the null device: the next file or socket would get its number,
    and whatever is printed to it."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def flushed(code: int) -> int:
    """What is still buffered goes out now, while an error can be told apart from a defect."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        return report(CommandError(f"cannot write the output: {error.strerror}", code=code or codes.CHECK_FAILED))
    return code


def _drop_output() -> None:
    """Nobody reads it; Python would complain at exit about what is still buffered."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # not a file: a test's
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def _run(words: list[str]) -> int:
    try:
        return dispatch(words)
    except CommandError as error:
        return report(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return codes.INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # its reader is gone: nothing left to tell it
        return codes.OK
    except OSError as error:
        if error.errno != errno.ENOSPC:
            return _defect(error)
        _drop_output()
        cause = "no space left" + (f": {error.filename}" if error.filename else " where the output goes")
        return report(CommandError(cause, "make room, then try again"))
    except Exception as error:
        return _defect(error)


def _defect(error: Exception) -> int:
    if os.environ.get("PARAMSERVER_TRACEBACK") == "1":
        raise error
    cause = f"{type(error).__name__}: {escape(error, 500)}"
    return report(
        CommandError(cause, "a defect of paramserver; PARAMSERVER_TRACEBACK=1 shows where", code=codes.INTERNAL)
    )


def dispatch(words: list[str]) -> int:
    if not words:
        print(usage(), file=sys.stderr)
        return codes.USAGE
    name, rest = words[0], words[1:]
    if name in ("-h", "--help", "help"):
        print(usage())
        return codes.OK
    if name == "--version":
        print(version())
        return codes.OK
    families = [one for one in COMMANDS if one.name.startswith(f"{name} ")]
    if families:
        return dispatch_family(name, families, rest)
    command = next((one for one in COMMANDS if one.name == name), None)
    if command is None:
        near = flags.did_you_mean(name, [one.name for one in COMMANDS])
        raise UsageProblems([f"no command '{escape(name)}'{near}"], "paramserver --help shows the commands")
    return run_command(command, rest)


def dispatch_family(name: str, commands: Sequence[Command], words: list[str]) -> int:
    """`paramserver NAME WORD`."""
    known = [one.name.removeprefix(f"{name} ") for one in commands]
    if words and words[0] in ("-h", "--help", "help"):
        print(usage(commands))
        return codes.OK
    if not words or words[0] not in known:
        said = f"no command '{name} {escape(words[0])}'{flags.did_you_mean(words[0], known)}" if words else ""
        problem = said or f"'{name}' needs one more word: {', '.join(known)}"
        raise UsageProblems([problem], f"paramserver {name} --help shows the commands")
    return run_command(commands[known.index(words[0])], words[1:])


def run_command(command: Command, words: list[str]) -> int:
    path, _, value = command.module.partition(":")
    imported: Any = importlib.import_module(path)
    module: Subcommand = getattr(imported, value) if value else imported
    parser = Parser(
        prog=f"paramserver {command.name}",
        description=module.DESCRIPTION,
        epilog=f"{module.EPILOG}\n{codes.TABLE}" if module.EPILOG else codes.TABLE,
        formatter_class=flags.HelpFormatter,
        allow_abbrev=False,
    )
    flags.add(parser, module.FLAGS)
    example = getattr(module, "COMMAND", "")  # of those that start what stands after `--`
    ours, rest = split(words) if example else (words, ())
    try:
        parsed, unknown = parser.parse_known_args(ours)
    except SystemExit as done:  # --help
        return done.code if isinstance(done.code, int) else codes.USAGE
    if example and not rest:
        raise UsageProblems(["no command: it stands after --"], f"such as: {example}")
    values, problems = flags.read(module.FLAGS, parsed, unknown, ("--help",))
    values.command = rest
    return module.run(values, problems)


def split(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """What stands before the first `--`, and what after it."""
    if "--" not in words:
        return words, ()
    at = words.index("--")
    return words[:at], tuple(words[at + 1 :])


def report(error: CommandError) -> int:
    """One line of cause (of usage: one a problem) and one of hint, on standard error."""
    lines = error.problems if isinstance(error, UsageProblems) else [error.cause]
    for line in lines:
        print(f"paramserver: {escape(line, 1000)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {escape(error.hint, 1000)}", file=sys.stderr)
    return error.code


def usage(commands: Sequence[Command] = COMMANDS) -> str:
    width = max(len(command.name) for command in commands)
    lines = ["usage: paramserver COMMAND [FLAGS]", "", "A parameter server that cannot lose a step.", "", "commands:"]
    lines += [f"  {command.name.ljust(width)}  {command.help}" for command in commands]
    lines += ["", "paramserver COMMAND --help shows its flags; --version the version.", "", codes.TABLE.rstrip()]
    return "\n".join(lines)


def version() -> str:
    from importlib import metadata

    try:
        return f"paramserver {metadata.version('paramserver')}"
    except metadata.PackageNotFoundError:
        return "paramserver (not installed)"
