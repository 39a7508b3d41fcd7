"""Exit codes are a promise: what a process can end with stands in the manual, with the same number."""

import re
from pathlib import Path

from consensus.runtime.threads import EXIT_INVARIANT_BROKEN
from consensus.storage.errors import EXIT_STORAGE_FAILED
from paramserver.cli import codes

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def test_every_exit_code_is_documented() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", OPERATIONS.read_text(), re.MULTILINE)}
    known = {value for name, value in vars(codes).items() if name.isupper() and isinstance(value, int)}
    assert known - documented == set()
    assert (EXIT_STORAGE_FAILED, EXIT_INVARIANT_BROKEN) == (codes.STORAGE, codes.INTERNAL)
