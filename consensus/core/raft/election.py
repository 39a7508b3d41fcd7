"""Who leads: timers, pre-votes, votes, and every change of term, role and leader.

Owns: term, vote, role and leader of the shared state; the campaign timer; answers of the election under way.
Invariants: terms never fall; one vote a term; a vote counts or leaves only once it is durable; a replica that hears
from a live leader lets nobody disturb it (pre-vote and check-quorum, dissertation sections 9.6 and 6.4.1), unless its
own control connection to that leader closed (RULES C2). Must not know: entries, progress, commit.

A pre-vote is a question and promises nothing: it is asked and answered without changing anybody's term. It must always
be answered, and a refusal carries the refuser's own term, or two replicas could wait for each other for ever (HAZARDS
11).
"""

from __future__ import annotations

from collections.abc import Callable

from consensus.core.interface import Randomness, ReplicaId, Role, VoteRequest, VoteResponse
from consensus.core.quorum import VoteOutcome, election_outcome
from consensus.core.raft.config import TERM_MAX
from consensus.core.raft.durability import Durability
from consensus.core.raft.state import ReplicaState


class Election:
    __slots__ = (
        "_closed",
        "_deadline_ms",
        "_durability",
        "_elapsed_ms",
        "_granted",
        "_lost",
        "_may_lead",
        "_on_role",
        "_random",
        "_refused",
        "_silence_ms",
        "_state",
        "_sure_to_lead",
        "_transferred",
    )

    def __init__(
        self,
        state: ReplicaState,
        durability: Durability,
        random: Randomness,
        on_role: Callable[[], None],
        sure_to_lead: Callable[[], bool],
        may_lead: Callable[[], bool],
    ) -> None:
        """`on_role` is called after each change of role or term, when the state already holds the new ones;
        `sure_to_lead` tells whether a leader has reason to believe that it still is one, `may_lead` whether the group
        may need this replica as one. Whose votes are needed is another question: those of the configuration in
        force."""
        self._state = state
        self._durability = durability
        self._random = random
        self._on_role = on_role
        self._sure_to_lead = sure_to_lead
        self._may_lead = may_lead
        self._transferred = False
        """The candidacy is by order of the leader (dissertation section 3.10)."""
        self._granted: set[ReplicaId] = set()
        self._refused: set[ReplicaId] = set()
        self._closed: set[ReplicaId] = set()
        """Peers whose control connection is closed."""
        self._lost: ReplicaId = 0
        """A leader whose connection closed and who was not heard of since; 0 for none."""
        self._silence_ms = 0
        """Since the leader was last heard of."""
        self._restart_timer()

    # --- timers -----------------------------------------------------------------------------------------------------

    def _restart_timer(self) -> None:
        config = self._state.config
        spread = self._random.randrange(0, config.election_spread_ms)
        self._elapsed_ms = 0
        self._deadline_ms = config.election_timeout_ms + spread + self._state.membership.place() * config.place_delay_ms

    def tick(self, elapsed_ms: int) -> None:
        """For replicas that don't lead."""
        self._elapsed_ms += elapsed_ms
        self._silence_ms += elapsed_ms
        if self._elapsed_ms >= self._deadline_ms:
            self.campaign()

    def woken(self) -> None:
        """A follower slept, so its timers stood still: the leader gets a whole timeout to show itself (RULES C5)."""
        self._silence_ms = 0
        self._restart_timer()

    # --- the leader, alive or lost ----------------------------------------------------------------------------------

    def heard_from(self, leader: ReplicaId, *, lately: bool) -> None:
        """A message of the current term's leader arrived. One that it sent `lately` (a heartbeat: those wait behind
        nothing) contradicts a closed connection; what comes with payload may have been on its way since before."""
        if self._state.role is not Role.FOLLOWER or self._state.leader != leader:
            self.become_follower(self._state.term, leader)
        self._silence_ms = 0
        self._restart_timer()
        if lately or self._lost != leader or leader not in self._closed:
            self._lost = 0
        else:
            # Campaign when no more of it comes.
            self._deadline_ms = min(self._deadline_ms, max(self._state.config.hint_retry_ms_min, self._hint_ms(leader)))

    def connection(self, replica: ReplicaId, *, closed: bool) -> None:
        """The closed-connection hint (RULES C2): campaign soon, staggered by place, instead of waiting out the
        timeout."""
        if not closed:
            self._closed.discard(replica)
            return
        self._closed.add(replica)
        state = self._state
        if state.role is not Role.FOLLOWER or state.leader != replica:
            return
        self._lost = replica
        self._hurry(self._hint_ms(replica))

    def disconnected(self, replica: ReplicaId) -> bool:
        """The control connection to it is closed, as far as the host said."""
        return replica in self._closed

    def _hint_ms(self, lost: ReplicaId) -> int:
        """The lost leader itself won't campaign, so its place is no reason to wait."""
        return self._state.membership.place(without=lost) * self._state.config.hint_delay_ms

    def _hurry(self, delay_ms: int) -> None:
        self._deadline_ms = min(self._deadline_ms, self._elapsed_ms + delay_ms)
        if self._elapsed_ms >= self._deadline_ms:
            self.campaign()

    def protects_leader(self) -> bool:
        """Whether this replica has reason to believe in a live leader, and so refuses to help another."""
        state = self._state
        if state.role is Role.LEADER:
            return self._sure_to_lead()
        return state.leader != 0 and state.leader != self._lost and self._silence_ms < state.config.election_timeout_ms

    # --- changes of role --------------------------------------------------------------------------------------------

    def become_follower(self, term: int, leader: ReplicaId) -> None:
        state = self._state
        if term > state.term:
            state.term = term
            state.vote = 0
        state.role = Role.FOLLOWER
        state.leader = leader
        self._silence_ms = 0
        self._restart_timer()
        self._on_role()

    def campaign(self) -> None:
        """Ask first whether an election could be won (pre-vote); term and vote stay as they are."""
        state = self._state
        self._restart_timer()
        if not self._may_campaign():
            return
        state.role = Role.PRE_CANDIDATE
        state.leader = 0
        self._granted = {state.me}
        self._refused = set()
        self._on_role()
        self._ask(pre=True)
        self._decide()

    def _may_campaign(self) -> bool:
        """A replica whose disk stands still could not lead, nor make its own vote durable (HAZARDS 16)."""
        state = self._state
        able = not state.storage_stalled and not state.removed and self._remembers()
        return able and self._may_lead() and state.term < TERM_MAX - 2

    def _remembers(self) -> bool:
        """A replica that may have forgotten entries could help to elect a leader that lacks them (RULES W7)."""
        return not self._state.forgetful

    def campaign_by_order(self) -> None:
        """The leader hands over: nobody needs to be asked whether it is lost (dissertation section 3.10)."""
        if self._may_campaign():
            self._become_candidate(transferred=True)

    def _become_candidate(self, *, transferred: bool = False) -> None:
        state = self._state
        self._transferred = transferred
        state.term += 1
        state.vote = state.me
        state.role = Role.CANDIDATE
        state.leader = 0
        # The own vote counts once it is durable, like everybody's.
        self._granted = set()
        self._refused = set()
        self._restart_timer()
        self._on_role()
        self._ask(pre=False)

    def vote_durable(self) -> None:
        """Something became durable: perhaps the own vote of the election under way."""
        state = self._state
        if state.role is Role.CANDIDATE and state.me not in self._granted and self._durability.synced():
            self._granted.add(state.me)
            self._decide()

    def _become_leader(self) -> None:
        state = self._state
        state.role = Role.LEADER
        state.leader = state.me
        self._lost = 0
        self._on_role()

    def _decide(self) -> None:
        state = self._state
        outcome = election_outcome(state.membership.configuration, granted=self._granted, refused=self._refused)
        if outcome is VoteOutcome.WON:
            if state.role is Role.PRE_CANDIDATE:
                self._become_candidate()
            else:
                self._become_leader()
        elif state.role is Role.CANDIDATE and (outcome is VoteOutcome.LOST or self._hopeless()):
            self.become_follower(state.term, 0)
            if self._lost in self._closed:
                # The vote was split, most likely with the other one that had the hint: again soon, staggered by place.
                self._retry_soon(self._hint_ms(self._lost))

    def _hopeless(self) -> bool:
        """Not lost by the count yet, but those who are missing cannot be reached."""
        silent = self._closed - self._granted
        configuration = self._state.membership.configuration
        outcome = election_outcome(configuration, granted=self._granted, refused=self._refused | silent)
        return bool(self._refused) and outcome is VoteOutcome.LOST

    # --- asking -----------------------------------------------------------------------------------------------------

    def _ask(self, *, pre: bool) -> None:
        state = self._state
        # A pre-vote asks for the term that would follow. A request for a vote speaks of the own vote, so it waits for
        # it.
        send = self._durability.send if pre else self._durability.send_durable
        for voter in state.membership.voters:
            if voter != state.me:
                send(
                    VoteRequest(
                        sender=state.me,
                        to=voter,
                        term=state.term + 1 if pre else state.term,
                        incarnation=state.incarnation,
                        pre=pre,
                        last_index=state.log.last_index,
                        last_term=state.log.last_term,
                        transfer=self._transferred and not pre,
                    )
                )

    def answered(self, answer: VoteResponse) -> None:
        """An answer to the own question. One that carries a higher term was already followed."""
        state = self._state
        if answer.pre:
            asked = Role.PRE_CANDIDATE
            # A refusal carries the refuser's term, a grant the term asked for.
            current = answer.term == state.term + 1 if answer.granted else True
        else:
            asked = Role.CANDIDATE
            current = answer.term == state.term
        if state.role is not asked or not current:
            state.drop("stale_vote")
            return
        (self._granted if answer.granted else self._refused).add(answer.sender)
        self._decide()

    def refused(self) -> None:
        """A pre-vote was refused: while the lost leader's connection stays closed it is repeated soon (RULES C2): the
        refuser has probably not noticed yet. One that comes too late to matter ends no candidacy."""
        state = self._state
        if state.role in (Role.CANDIDATE, Role.LEADER) or self._lost == 0 or self._lost not in self._closed:
            return
        self._retry_soon()

    def _retry_soon(self, later_ms: int = 0) -> None:
        config = self._state.config
        delay = self._random.randrange(config.hint_retry_ms_min, config.hint_retry_ms_max + 1) + later_ms
        self._deadline_ms = min(self._deadline_ms, self._elapsed_ms + delay)

    # --- being asked ------------------------------------------------------------------------------------------------

    def asked_pre_vote(self, request: VoteRequest) -> None:
        free = request.term > self._state.term and not self.protects_leader()
        granted = free and self._remembers() and self._up_to_date(request)
        self._answer(request, granted=granted)

    def asked_vote(self, request: VoteRequest) -> None:
        """For requests of the current term."""
        state = self._state
        free = state.vote == request.sender or (state.vote == 0 and state.leader == 0)
        granted = free and self._remembers() and self._up_to_date(request)
        if granted:
            state.vote = request.sender
            self._restart_timer()
        self._answer(request, granted=granted)

    def _up_to_date(self, request: VoteRequest) -> bool:
        """The candidate's log is at least as far as this one: by last term, then by length (Raft section 5.4.1)."""
        log = self._state.log
        return (request.last_term, request.last_index) >= (log.last_term, log.last_index)

    def _answer(self, request: VoteRequest, *, granted: bool) -> None:
        state = self._state
        self._durability.send_durable(
            VoteResponse(
                sender=state.me,
                to=request.sender,
                term=self._answer_term(request, granted=granted),
                incarnation=state.incarnation,
                pre=request.pre,
                granted=granted,
            )
        )

    def _answer_term(self, request: VoteRequest, *, granted: bool) -> int:
        """A grant names the term it is for; a refusal the own term, which the candidate may not know yet (HAZARDS
        11)."""
        return request.term if granted else self._state.term
