"""For all tests: the fixture `interruptible`; `--mutation NAME` puts one known bug back (see
tests/mutations/README.md), `--rewrite-scenarios` writes golden texts anew."""

import signal
from collections.abc import Iterator

import pytest

from tests.mutations import catalogue


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mutation",
        metavar="NAME",
        default=None,
        help="put the bug of tests/mutations/mutation_NAME.py back for this run",
    )
    parser.addoption(
        "--rewrite-scenarios", action="store_true", help="write what the scripts of tests/scenarios print into them"
    )


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--mutation")
    if name is None:
        return
    try:
        mutation = catalogue.find(name)
    except KeyError as error:
        raise pytest.UsageError(error.args[0]) from None
    # Before test files are imported, so that a function they take with `from ... import` is the changed one.
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    mutation.install(patch)


def pytest_report_header(config: pytest.Config) -> str | None:
    name = config.getoption("--mutation")
    return f"mutation: {name} (tests are expected to fail)" if name else None


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, here and in processes that are started: whoever runs tests in the background has
    it ignored, and that is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
