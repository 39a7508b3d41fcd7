"""What nodes say to each other once they know each other: frames of our own on plain sockets (docs/formats.md)."""

from consensus.transport.sockets.receiving import FrameListener
from consensus.transport.sockets.sending import FrameLink

__all__ = ["FrameLink", "FrameListener"]
