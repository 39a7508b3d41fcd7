"""Puts a known bug into a server that is a process of its own: Python imports a module of this name at its start.

With this folder and the repository's root on PYTHONPATH, and PARAMSERVER_TEST_MUTATION=NAME. So real servers are
broken as tests are by `--mutation`, and nothing in the product knows of it. Must not know: which bug.
"""

import importlib
import os

NAME = "PARAMSERVER_TEST_MUTATION"
if NAME in os.environ:
    import pytest

    importlib.import_module(f"tests.mutations.mutation_{os.environ[NAME]}").install(pytest.MonkeyPatch())
