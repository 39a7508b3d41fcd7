"""Scenarios as text: commands to a handful of cores, and what must be seen after each.

A script has comments (`#`), commands (`> ...`), and under each command what it must print. Nothing happens by itself:
messages wait on their links until they are delivered or dropped, time passes where a command says so. Disks are
written and synced at once, unless `disk N holds`. Randomness draws the least possible, so a timeout is the shortest.

    > group 1 2 3                     voters, then `learners 4 5`; `starting 6` makes a replica with an empty log
    > tick 1 300                      time for one replica, in ms; `tick all 50`
    > elect 1                         let it campaign and win; what is said meanwhile is not shown
    > run 1000                        time for all, everything delivered; what is said meanwhile is not shown
    > deliver / deliver 1>2           everything on its way (once), or one link's; `settle`: until nothing is on its way
    > drop 1>2 / cut 1 / heal 1       lose what is on its way; lose everything to and from 1 from now on, or no more
    > propose 1 hello                 an entry
    > membership 1 voters 1 2 3 learners 4
    > transfer 1 3 / read 2 7         hand over leadership; a read with a token
    > disk 1 holds / flushes          what is to be persisted waits; is persisted; `stalled`, `well`: the host says so
    > crash 1 / start 1               what was not persisted is lost; `start 1 forgetful`; `lose 1 5`: entries from 5 on
    > compact 1                       a snapshot of what is applied replaces the log
    > close 1 2                       1 sees its connection to 2 closed
    > log 1 / status 1                all there is
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from consensus.core.configuration import decode_configuration
from consensus.core.errors import ConsensusError
from consensus.core.interface import (
    AnyMessage,
    AppendRequest,
    AppendResponse,
    CampaignNow,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    MembershipChange,
    ReadRequest,
    ReadResponse,
    Ready,
    RejoinRequest,
    RejoinResponse,
    Removed,
    SnapshotMeta,
    SnapshotOffer,
    VoteRequest,
    VoteResponse,
)
from consensus.core.raft import RaftConfig, RaftCore
from consensus.storage.checksum import crc32c
from tests.unit.core.harness import Disk, Lowest

CONFIG = RaftConfig(quiesce_after_ms=1000)


def numbers(of: tuple[int, ...]) -> str:
    return " ".join(map(str, of)) or "none"


def show_configuration(configuration: Configuration) -> str:
    text = f"voters {numbers(configuration.voters)}"
    if configuration.outgoing:
        text += f", outgoing {numbers(configuration.outgoing)}"
    if configuration.learners:
        text += f", learners {numbers(configuration.learners)}"
    return text


def show_entry(entry: Entry) -> str:
    what = {EntryKind.NOOP: "no-op", EntryKind.NORMAL: repr(bytes(entry.payload).decode())}.get(entry.kind, "")
    if entry.kind is EntryKind.CONFIGURATION:
        what = f"<{show_configuration(decode_configuration(entry.payload))}>"
    return f"{entry.index}/{entry.term} {what}"


def show_message(message: AnyMessage) -> str:
    match message:
        case VoteRequest():
            kind = "pre-vote?" if message.pre else "vote?"
            rest = f"log ends {message.last_index}/{message.last_term}{' by transfer' if message.transfer else ''}"
        case VoteResponse():
            kind = ("pre-vote" if message.pre else "vote") + (" granted" if message.granted else " refused")
            rest = ""
        case AppendRequest():
            kind = "append"
            entries = "; ".join(map(show_entry, message.entries))
            after = f"after {message.previous_index}/{message.previous_term}"
            rest = f"{after} [{entries}] commit {message.commit}"
        case AppendResponse():
            kind = "append refused" if message.rejected else "append taken"
            retry = f", try {message.conflict_index} (term {message.conflict_term})" if message.rejected else ""
            rest = f"match {message.match_index}{retry}{' forgetful' if message.forgetful else ''}"
        case Heartbeat():
            kind = "heartbeat"
            rest = f"round {message.round} commit {message.commit}{' quiesce' if message.quiesce else ''}"
        case HeartbeatResponse():
            kind = "heartbeat answer"
            rest = f"round {message.round} match {message.match_index}{' forgetful' if message.forgetful else ''}"
        case CampaignNow():
            kind, rest = "campaign now", f"log ends {message.last_index}"
        case ReadRequest():
            kind, rest = "read?", f"token {message.token}"
        case ReadResponse():
            answer = "refused" if message.refused else f"index {message.index}"
            kind, rest = "read", f"token {message.token} {answer}"
        case Removed():
            kind, rest = "removed", f"by {message.index}"
        case RejoinRequest():
            kind, rest = "rejoin?", ""
        case RejoinResponse():
            kind, rest = "rejoin", f"hold {message.last_index}"
        case SnapshotOffer():
            kind, rest = "snapshot", f"up to {message.meta.index}/{message.meta.term}"
        case _:
            raise TypeError(f"no words for {message!r}")
    return f"{message.sender}>{message.to} term {message.term} {kind} {rest}".rstrip()


@dataclass
class Machine:
    """One replica: core, disk, and what waits to be persisted."""

    replica: int
    configuration: Configuration
    disk: Disk
    core: RaftCore | None = None
    holds: bool = False
    seen: str = ""

    def start(self, *, forgetful: bool) -> None:
        self.disk.incarnation += 1
        self.writing: list[Ready] = []
        self.core = RaftCore(
            group=1,
            replica=self.replica,
            configuration=self.configuration,
            hard_state=self.disk.hard_state,
            entries=tuple(self.disk.entries),
            snapshot=self.disk.snapshot,
            incarnation=self.disk.incarnation,
            config=CONFIG,
            random=Lowest(),
            **({"forgetful": True} if forgetful else {}),
        )

    def state(self) -> str:
        """What people look at."""
        if self.core is None:
            return "down"
        status = self.core.status()
        words = [
            f"{status.role.name.lower().replace('_', '-')} term {status.term}",
            f"leader {status.leader or 'unknown'}",
            f"log {status.last_index} (flushed {status.flushed_index})",
            f"commit {status.commit_index} applied {status.applied_index}",
        ]
        configuration = status.configuration or self.core.configuration
        if configuration.outgoing or status.configuration_index:
            words.append(show_configuration(configuration))
        if status.transferee:
            words.append(f"hands over to {status.transferee}")
        words += [name for name in ("quiesced", "forgetful", "storage_stalled", "removed") if getattr(status, name)]
        return ", ".join(words)


class Script:
    """Runs commands; each gives the lines it printed."""

    def __init__(self) -> None:
        self._machines: dict[int, Machine] = {}
        self._links: list[AnyMessage] = []
        self._cut: set[int] = set()
        self._out: list[str] = []
        self._commands: dict[str, Callable[[list[str]], None]] = {
            name.removeprefix("_do_"): getattr(self, name) for name in dir(self) if name.startswith("_do_")
        }

    def run(self, line: str) -> list[str]:
        """Raises `ValueError` for what is no command."""
        name, *words = line.split()
        if name not in self._commands:
            raise ValueError(f"no command {name!r}; there are {', '.join(sorted(self._commands))}")
        self._out = []
        self._commands[name](words)
        self._drain()
        for machine in self._machines.values():
            state = machine.state()
            if state != machine.seen:
                machine.seen = state
                self._out.append(f"{machine.replica}: {state}")
        return self._out or ["nothing"]

    # --- commands -----------------------------------------------------------------------------------------------------

    def _do_group(self, words: list[str]) -> None:
        parts: dict[str, list[int]] = {"voters": [], "learners": [], "starting": []}
        into = "voters"
        for word in words:
            if word in parts:
                into = word
            else:
                parts[into].append(int(word))
        configuration = Configuration(tuple(parts["voters"]), tuple(parts["learners"]))
        for replica in (*parts["voters"], *parts["learners"], *parts["starting"]):
            machine = self._machines[replica] = Machine(replica, configuration, Disk())
            machine.start(forgetful=False)
            machine.seen = machine.state()
        self._out.append(f"all: {next(iter(self._machines.values())).seen}")

    def _do_tick(self, words: list[str]) -> None:
        for machine in self._of(words[0]):
            left = int(words[1])
            while left > 0 and machine.core is not None:
                machine.core.tick(min(10, left))
                left -= 10
                self._drain()

    def _do_elect(self, words: list[str]) -> None:
        core = self._core(words[0])
        core.tick(CONFIG.election_timeout_ms)
        core.tick(CONFIG.election_timeout_ms)
        self._do_settle([])
        self._out = []

    def _do_run(self, words: list[str]) -> None:
        for _ in range(int(words[0]) // 10):
            self._do_tick(["all", "10"])
            self._do_settle([])
        self._out = []

    def _do_deliver(self, words: list[str]) -> None:
        wanted = self._on_link(words[0]) if words else list(self._links)
        for message in wanted:
            self._links.remove(message)
            self._deliver(message)

    def _do_settle(self, words: list[str]) -> None:
        for _ in range(1000):
            self._drain()
            if not self._links:
                return
            message = self._links.pop(0)
            self._deliver(message)
        raise ValueError("it never settles")

    def _do_drop(self, words: list[str]) -> None:
        for message in self._on_link(words[0]):
            self._links.remove(message)

    def _do_cut(self, words: list[str]) -> None:
        self._cut |= {int(word) for word in words}

    def _do_heal(self, words: list[str]) -> None:
        self._cut -= {int(word) for word in words}

    def _do_propose(self, words: list[str]) -> None:
        payload = " ".join(words[1:]).encode()
        self._try(lambda: self._core(words[0]).propose(payload, crc32c(payload)))

    def _do_membership(self, words: list[str]) -> None:
        parts: dict[str, list[int]] = {"voters": [], "learners": []}
        into = ""
        for word in words[1:]:
            if word in parts:
                into = word
            else:
                parts[into].append(int(word))
        change = MembershipChange(tuple(parts["voters"]), tuple(parts["learners"]))
        self._try(lambda: self._core(words[0]).propose_membership(change))

    def _do_transfer(self, words: list[str]) -> None:
        self._try(lambda: self._core(words[0]).transfer(int(words[1])))

    def _do_read(self, words: list[str]) -> None:
        self._try(lambda: self._core(words[0]).read(int(words[1])))

    def _do_disk(self, words: list[str]) -> None:
        machine = self._machines[int(words[0])]
        if words[1] == "stalled":
            self._core(words[0]).storage(stalled=True)
        elif words[1] == "well":
            self._core(words[0]).storage(stalled=False)
        else:
            machine.holds = {"holds": True, "flushes": False}[words[1]]

    def _do_crash(self, words: list[str]) -> None:
        for machine in self._of(words[0]):
            machine.core = None
            machine.writing = []
            self._links = [one for one in self._links if machine.replica not in (one.sender, one.to)]

    def _do_start(self, words: list[str]) -> None:
        for machine in self._of(words[0]):
            machine.start(forgetful="forgetful" in words)

    def _do_close(self, words: list[str]) -> None:
        self._core(words[0]).connection(int(words[1]), closed=True)

    def _do_compact(self, words: list[str]) -> None:
        machine, core = self._machines[int(words[0])], self._core(words[0])
        status = core.status()
        entry = core.entry(status.applied_index)
        if entry is None:
            raise ValueError("nothing is applied")
        meta = SnapshotMeta(entry.index, entry.term, core.configuration, f"snapshot-{entry.index}")
        machine.disk.take_snapshot(meta)
        core.compact(meta, keep_from=meta.index + 1)

    def _do_lose(self, words: list[str]) -> None:
        """`lose 2 5`: the disk forgets the entries from 5 on, as damage does; while the replica is down."""
        machine = self._machines[int(words[0])]
        machine.disk.entries = [entry for entry in machine.disk.entries if entry.index < int(words[1])]

    def _do_log(self, words: list[str]) -> None:
        core = self._core(words[0])
        status = core.status()
        if status.snapshot_index:
            self._out.append(f"snapshot up to {status.snapshot_index}")
        for index in range(status.first_index, status.last_index + 1):
            entry = core.entry(index)
            entry = None if entry is None else self._machines[int(words[0])].disk.load(entry)
            self._out.append(show_entry(entry) if entry is not None else f"{index} missing")

    def _do_status(self, words: list[str]) -> None:
        for machine in self._of(words[0] if words else "all"):
            machine.seen = ""

    # --- how ----------------------------------------------------------------------------------------------------------

    def _of(self, word: str) -> list[Machine]:
        return list(self._machines.values()) if word == "all" else [self._machines[int(word)]]

    def _core(self, word: str) -> RaftCore:
        core = self._machines[int(word)].core
        if core is None:
            raise ValueError(f"replica {word} is down")
        return core

    def _on_link(self, word: str) -> list[AnyMessage]:
        sender, to = map(int, word.split(">"))
        return [message for message in self._links if (message.sender, message.to) == (sender, to)]

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except ConsensusError as error:
            self._out.append(f"{type(error).__name__}: {error}")

    def _deliver(self, message: AnyMessage) -> None:
        machine = self._machines.get(message.to)
        if machine is None or machine.core is None:
            return
        machine.core.step(message)
        self._drain()

    def _drain(self) -> None:
        """What cores ask for is done; what they send waits on its link."""
        for machine in self._machines.values():
            core = machine.core
            while core is not None and (core.has_ready() or (machine.writing and not machine.holds)):
                while core.has_ready():
                    self._carry_out(machine, core, core.ready())
                while machine.writing and not machine.holds:
                    ready = machine.writing.pop(0)
                    machine.disk.write(ready)
                    core.persisted(ready.persist_number)
                    if ready.install is not None:
                        core.installed(ready.install)

    def _carry_out(self, machine: Machine, core: RaftCore, ready: Ready) -> None:
        if ready.persist_number:
            machine.writing.append(ready)
        for message in filter(None, map(machine.disk.whole, ready.messages)):
            lost = {message.sender, message.to} & self._cut
            self._out.append(show_message(message) + (" (lost)" if lost else ""))
            if not lost:
                self._links.append(message)
        for entry in ready.committed:
            core.applied(entry.index)
        for result in ready.reads:
            answer = "refused" if result.refused else f"may be answered at {result.index}"
            self._out.append(f"{machine.replica}: read {result.token} {answer}")
        for replica in ready.send_snapshot:
            self._send_snapshot(machine, core, replica)

    def _send_snapshot(self, machine: Machine, core: RaftCore, to: int) -> None:
        meta = machine.disk.snapshot
        if meta is None:
            raise ValueError(f"replica {machine.replica} has no snapshot to send")
        status = core.status()
        self._out.append(f"{machine.replica}>{to} the snapshot up to {meta.index} is sent")
        target = self._machines.get(to)
        if to in self._cut or machine.replica in self._cut or target is None or target.core is None:
            core.snapshot_sent(to, meta, ok=False)
            return
        self._links.append(
            SnapshotOffer(
                sender=machine.replica, to=to, term=status.term, incarnation=machine.disk.incarnation, meta=meta
            )
        )
        core.snapshot_sent(to, meta, ok=True)


def replay(text: str) -> str:
    """The same script with what its commands print now."""
    script = Script()
    lines: list[str] = []
    printed = False
    for line in text.splitlines():
        if line.startswith("> "):
            lines.append(line)
            lines += [f"    {out}" for out in script.run(line[2:])]
            printed = True
        elif printed and line.startswith("    "):
            continue  # What it printed before.
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def scripts() -> list[Path]:
    return sorted(Path(__file__).parent.glob("*.txt"))
