"""Labels that say which machines are near each other: a rack, a data centre.

Owns their form. What a label means is its giver's business: equal labels are near, all others far. Must not know:
servers, who uses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from paramserver.wire.errors import Problem, shown

CHARACTERS_MAX = 63
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def zone_problems(field: str, zone: str) -> Iterator[Problem]:
    """Of a label that was given."""
    if not isinstance(zone, str) or len(zone) > CHARACTERS_MAX or not _LABEL.fullmatch(zone):
        expected = f"1 to {CHARACTERS_MAX} letters, digits, '.', '_' or '-', with a letter or digit at both ends"
        yield Problem(field, expected, shown(zone) if isinstance(zone, str) else repr(zone))
