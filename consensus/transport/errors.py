"""Errors of the transport.

TransportError
├── BadFrame             bytes from outside that are no frame of ours, or break a bound
└── IntroductionRefused  another member refuses this node (another cluster, folder or arithmetic): people must act
    ├── FolderReplaced   because it knows this node's number with another folder
    └── FolderOutdated   because it met a later life of this folder
"""

from __future__ import annotations


class TransportError(Exception):
    """Root of the tree."""


class BadFrame(TransportError):
    """A received frame can't be read; says which field, and what was expected."""


class IntroductionRefused(TransportError):
    """A member refuses this node; the text is one line of cause and repair. Trying again does not help."""


class FolderReplaced(IntroductionRefused):
    """This folder is new, and the members know this node's number with another one: it was wiped or replaced."""


class FolderOutdated(IntroductionRefused):
    """A member has met a later life of this folder: an older copy was put back, or the newest part of its log is gone.
    What this node acknowledged since is not in it."""
