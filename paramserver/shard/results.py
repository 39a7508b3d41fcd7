"""What apply answers. Results are values: they go to the proposer and to the group's listener on every replica.

Invariant: equal logs give equal results on every replica. Must not know: who reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from paramserver.shard.forms import Forms
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.codecs import Codec
from paramserver.wire.layout import Flat


class Why(StrEnum):
    """Why apply did not take a command."""

    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    GENERATION = "GENERATION"
    NOT_HERE = "NOT_HERE"
    """A block of another group."""
    NOT_OPEN = "NOT_OPEN"
    ALREADY_OPEN = "ALREADY_OPEN"
    EPOCH = "EPOCH"
    """An older init lease's, or another one's than the shard was opened with."""
    NOT_COMPLETE = "NOT_COMPLETE"
    """Some block lacks initial values of this epoch."""
    VIEW = "VIEW"
    CONTRIBUTORS = "CONTRIBUTORS"
    AHEAD = "AHEAD"
    """An update for a version that the block has not reached: an alarm, for no correct leader proposes it."""
    HELD = "HELD"
    """A hold stands at this step; the same command is taken once it ended."""
    PASSED = "PASSED"
    """Too late for that step; the highest version says what it is now."""
    NUMBER = "NUMBER"
    """A change that no hold was made for; a pin that ended before it came."""
    TOO_MANY = "TOO_MANY"
    SPEC = "SPEC"
    MALFORMED = "MALFORMED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """`block` is at `version` == step + 1; `forms` are exactly that version's weights."""

    model: int
    block: int
    step: int
    version: int
    view: int
    digest: bytes
    forms: Forms = field(compare=False, repr=False)

    @property
    def weights(self) -> Flat:
        return self.forms.weights

    @property
    def crc(self) -> int:
        """Of the fp32 bytes of `weights`."""
        return self.forms.make(Codec.FP32).crc


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """An update of a step that the block has behind it: no effect (RULES S1)."""

    model: int
    block: int
    step: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTaken:
    """An update or an initial value that was refused: no effect. `view` and `step` are the command's, `version` the
    block's."""

    why: Why
    message: str
    model: int = 0
    block: int = 0
    step: int = 0
    view: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Initial values were taken."""

    model: int
    block: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Of create, open, set view, hold, set rate. `changed`: the state is another now (a repetition changes nothing and
    is ok); where only what is bound to `steps` is, sums and streams go on."""

    model: int
    ok: bool
    changed: bool = False
    why: Why | None = None
    message: str = ""
    lowest_version: int = 0
    highest_version: int = 0
    view: int = 0
    steps: bool = False


Result: TypeAlias = Updated | Duplicate | NotTaken | Stored | Answer


def encode_result(result: Result) -> bytes:
    """As a `ShardResult`, for `Internal.Execute`."""
    if isinstance(result, Answer):
        return pb.ShardResult(
            ok=result.ok,
            reason=result.why.value if result.why else "",
            message=result.message,
            lowest_version=result.lowest_version,
            view=result.view,
            highest_version=result.highest_version,
        ).SerializeToString()
    if isinstance(result, NotTaken):
        return pb.ShardResult(ok=False, reason=result.why.value, message=result.message).SerializeToString()
    return pb.ShardResult(ok=True).SerializeToString()
