"""Whether this replica's state is what it should be (RULES D1), and what follows when it is not.

Owns the exchange of digests, the scrubbing of cold blocks, and the verdict on this replica itself. Invariants: a
replica whose state was found wrong, by a majority or by its own memory check, serves nothing from that moment on, and
has its group told to rebuild it; it is sound again when its state was replaced by another's, which it then has
compared; while replicas differ and no majority agrees, nothing is written. Must not know: streams, how replicas are
rebuilt.

Who is odd follows from evidence, never from an order: a verdict names the digest that a majority has, and the replica
compares it with its own. So changes of leader, late and doubled messages cost at most a verdict, which the next
difference brings again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from consensus.core.interface import ReplicaId
from consensus.runtime.interface import Lanes
from paramserver.shard.digests import DigestExchange, Verdict, decode_verdict
from paramserver.shard.effects import Effects
from paramserver.shard.options import LeaderOptions
from paramserver.shard.results import Updated
from paramserver.shard.scrubbing import Finding, Scrubber
from paramserver.shard.state import Shard

NOTES_A_TICK = 4


class Soundness:
    """Of one replica. voters, report, distrust, hold: as `GroupHandle` has them; all but the first are called by way of
    `effects`. served_since: (model, block, version) -> what was answered above that version, for people. stop: called
    when this replica may serve no longer, or nothing may be written."""

    def __init__(
        self,
        shards: Callable[[], Mapping[int, Shard]],
        lanes: Lanes,
        options: LeaderOptions,
        *,
        replica: ReplicaId,
        voters: Callable[[], Sequence[ReplicaId]],
        report: Callable[[ReplicaId, bytes], None],
        distrust: Callable[[str], None],
        hold: Callable[[bool], None],
        served_since: Callable[[int, int, int], str],
        alarm: Callable[[str], None],
        count: Callable[[str], None],
        stop: Callable[[], None],
        effects: Effects,
    ) -> None:
        self._shards = shards
        self._replica = replica
        self._report = report
        self._distrust = distrust
        self._hold = hold
        self._served_since = served_since
        self._alarm = alarm
        self._count = count
        self._stop = stop
        self._effects = effects
        self.distrusted = ""
        """Why this replica's state is not to be trusted."""
        self._stopped_for_doubt = False
        self._leading = False
        self._leader: ReplicaId = 0
        self._sound_from: dict[tuple[int, int], int] = {}
        """(model, block) -> the version that the last snapshot brought: verdicts on earlier ones are done with."""
        self._digests = DigestExchange(
            shards, alarm, count, options, replica=replica, voters=voters, odd=self._found_odd
        )
        self._scrubber = Scrubber(shards, lanes, period_ms=options.scrub_period_ms, found=self._scrubbed)

    @property
    def problem(self) -> str:
        """Why nothing may be written here; empty when it may."""
        if self.distrusted:
            return f"this replica is being rebuilt: {self.distrusted}"
        doubt = self._digests.doubt
        return f"replicas differ in {doubt}, and no majority has one value" if doubt else ""

    # --- what the replica hears of ----------------------------------------------------------------------------------

    def leads(self, leader: ReplicaId) -> None:
        """Who leads changed; this replica counts as leading when it may serve. 0: unknown."""
        self._leader = leader
        self._leading = leader == self._replica
        self._digests.forget()
        self._settle()

    def applied(self, result: Updated) -> None:
        self._digests.applied(result, leading=self._leading)
        self._settle()

    def note(self) -> bytes:
        return self._digests.note()

    def noted(self, replica: ReplicaId, note: bytes) -> None:
        if self.distrusted:
            return
        if self._leading:
            self._digests.noted(replica, note)
            self._settle()
        elif replica == self._leader:
            verdict = decode_verdict(note)
            if verdict is not None:
                self._judged(verdict)
            else:
                self._digests.asked(note)

    def tick(self, now_ms: int) -> None:
        """Look at blocks that nothing is written to, and say what has found nothing to ride on."""
        if self.distrusted:
            return
        self._scrubber.tick(now_ms)
        if self._leading:
            for replica, question in self._digests.questions():
                self._tell(replica, question)
            self._settle()
        elif self._leader:
            for _ in range(NOTES_A_TICK):
                note = self._digests.note()
                if not note:
                    break
                self._tell(self._leader, note)

    def restored(self) -> None:
        """The state is a snapshot's now: have all of it compared."""
        self._digests.forget()
        self._sound_from = {}
        for model, shard in self._shards().items():
            first = shard.info.create.first_block
            for index, block in enumerate(shard.published):
                self._sound_from[(model, first + index)] = block.version
                digest = block.digest_of(block.version)
                if digest is not None and not self._leading:
                    self._digests.tell((model, first + index, block.version), digest)
        if self.distrusted:
            self.distrusted = ""
            self._count("replicas_rebuilt")

    def forget(self, model: int) -> None:
        """It was deleted."""
        self._digests.forget_model(model)
        self._sound_from = {at: version for at, version in self._sound_from.items() if at[0] != model}
        self._settle()

    # --- verdicts ---------------------------------------------------------------------------------------------------

    def _found_odd(self, replica: ReplicaId, verdict: Verdict) -> None:
        """At the leader: a majority has something else than that replica, which may be this one."""
        if replica == self._replica:
            self._judged(verdict)
        else:
            self._tell(replica, verdict.encode())

    def _tell(self, replica: ReplicaId, content: bytes) -> None:
        self._effects.post(self._report, replica, content)

    def _judged(self, verdict: Verdict) -> None:
        """Judge oneself by what a majority has."""
        shard = self._shards().get(verdict.model)
        index = None if shard is None else shard.info.index_of(verdict.block)
        if shard is None or index is None:
            self._count("verdicts_unfounded")
            return
        block = shard.published[index]
        sound_from = self._sound_from.get((verdict.model, verdict.block), -1)
        known = block.digest_of(verdict.version)
        if known == verdict.right or verdict.version > block.version or verdict.version <= sound_from:
            self._count("verdicts_unfounded")
            return
        equal_at = -1 if verdict.equal_at is None else verdict.equal_at
        since = self._served_since(verdict.model, verdict.block, equal_at)
        self._doubt_oneself(f"a majority of the replicas has another {verdict.names()}; {since}")

    def _scrubbed(self, findings: list[Finding]) -> None:
        """The lane looked, and meanwhile the replica may have been found wrong, or got another state."""
        for finding in findings:
            self._count("blocks_scrubbed")
            model, block, version = finding.key
            if finding.wrong:
                since = self._served_since(model, block, version - 1)
                self._doubt_oneself(f"model {model} block {block} version {version}: {finding.wrong}; {since}")
            elif finding.digest is not None and not self._leading:
                self._digests.tell(finding.key, finding.digest)
        self._effects.flush()

    def _doubt_oneself(self, reason: str) -> None:
        """Neither lead nor serve, until rebuilt."""
        if self.distrusted:
            return
        self.distrusted = reason
        sent = "what it sent to its workers since is in doubt too; " if self._leading else ""
        self._alarm(f"the state of this replica is wrong: {reason}; {sent}it serves nothing until it is rebuilt")
        self._digests.forget()
        self._stop()
        self._effects.post(self._distrust, reason)

    def _settle(self) -> None:
        """Nothing is written while replicas differ and nobody knows who is right."""
        doubt = bool(self._digests.doubt) and not self.distrusted
        if doubt and not self._stopped_for_doubt:
            self._stop()
        if doubt is not self._stopped_for_doubt:
            self._effects.post(self._hold, doubt)
        self._stopped_for_doubt = doubt
