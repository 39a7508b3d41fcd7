"""Which messages are looked at at all.

Owns: the checks of FAULTS, bad input row 17: a message that no honest member sends is dropped and counted, never
followed and never a crash. Must not know: what a good message does.
"""

from __future__ import annotations

from consensus.core.configuration import decode_configuration
from consensus.core.interface import (
    AnyMessage,
    AppendRequest,
    AppendResponse,
    CampaignNow,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    Message,
    ReadRequest,
    ReadResponse,
    RejoinResponse,
    Removed,
    SnapshotOffer,
    VoteRequest,
)
from consensus.core.raft.config import INDEX_MAX, TERM_MAX
from consensus.core.raft.log import follow_on
from consensus.core.raft.membership import Standing
from consensus.core.raft.state import ReplicaState

FROM_REMOVED = "from_removed"
_OF_A_LEADER_OR_CANDIDATE = (
    AppendRequest,
    CampaignNow,
    Heartbeat,
    ReadResponse,
    RejoinResponse,
    Removed,
    SnapshotOffer,
    VoteRequest,
)


def refusal(state: ReplicaState, message: AnyMessage, *, commit_index: int) -> str:
    """Why a message is dropped, as the name it is counted under; empty for one to be taken."""
    if not isinstance(message, Message):
        return "not_a_message"
    if message.to != state.me:
        return "not_for_me"
    if message.sender == state.me:
        return "from_myself"
    if not 0 < message.sender < INDEX_MAX:
        return "from_nobody"
    if message.sender not in state.membership.members:
        standing = state.membership.standing(message.sender, commit_index=commit_index)
        if standing is Standing.REMOVED and not _finishes(state, message):
            return FROM_REMOVED
        if standing is Standing.UNKNOWN and not isinstance(message, _OF_A_LEADER_OR_CANDIDATE):
            # Answers come from those who were asked: members. Who leads or campaigns may have become one since.
            return "from_stranger"
    if not 0 < message.term < TERM_MAX:
        return "bad_term"
    if not 0 <= message.incarnation < INDEX_MAX:
        return "bad_incarnation"
    if isinstance(message, AppendRequest):
        return _append_refusal(message)
    if not _plausible(message):
        return "bad_index"
    return ""


def _finishes(state: ReplicaState, message: Message) -> bool:
    """A leader that left the group hands over in the term that it leads, after the others heard that it left."""
    return message.sender == state.leader and message.term == state.term


def _plausible(message: AnyMessage) -> bool:
    """Indexes and terms within bounds that sums of them can't leave."""
    match message:
        case VoteRequest():
            return 0 <= message.last_index < INDEX_MAX and 0 <= message.last_term <= message.term
        case AppendResponse():
            indexes = (message.match_index, message.conflict_index, message.last_index)
            return all(0 <= index < INDEX_MAX for index in indexes) and 0 <= message.conflict_term <= message.term
        case Heartbeat():
            return 0 <= message.commit < INDEX_MAX
        case HeartbeatResponse():
            return 0 <= message.match_index < INDEX_MAX
        case CampaignNow():
            return 0 < message.last_index < INDEX_MAX
        case ReadRequest():
            return 0 < message.token < INDEX_MAX
        case ReadResponse():
            return all(0 <= number < INDEX_MAX for number in (message.token, message.index, message.age_ms))
        case RejoinResponse():
            return 0 <= message.last_index < INDEX_MAX and 0 <= message.for_incarnation < INDEX_MAX
        case Removed():
            return 0 < message.index < INDEX_MAX
        case SnapshotOffer():
            return 0 < message.meta.index < INDEX_MAX and 0 < message.meta.term <= message.term
        case _:
            return True


def _append_refusal(request: AppendRequest) -> str:
    if not 0 <= request.previous_index < INDEX_MAX or not 0 <= request.commit < INDEX_MAX:
        return "bad_index"
    if not 0 <= request.previous_term <= request.term or (request.previous_index == 0) != (request.previous_term == 0):
        return "bad_previous"
    entries = request.entries
    if not entries:
        return ""
    if not follow_on(entries, previous_index=request.previous_index, previous_term=request.previous_term):
        return "bad_entries"
    # Terms never fall, so the last one is the highest.
    if entries[-1].term > request.term:
        return "bad_entries"
    if any(entry.kind is EntryKind.CONFIGURATION and not _is_configuration(entry) for entry in entries):
        return "bad_configuration"
    return ""


def _is_configuration(entry: Entry) -> bool:
    """It takes effect on append, so what does not decode must not be appended."""
    try:
        decode_configuration(entry.payload)
    except ValueError:
        return False
    return True
