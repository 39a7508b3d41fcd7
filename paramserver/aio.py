"""The client for code that runs on asyncio: `async with aio.connect(...)`; same names as `paramserver`, awaited."""

from worker.aio import Client as Client
from worker.aio import Connecting as Connecting
from worker.aio import Handover as Handover
from worker.aio import Model as Model
from worker.aio import connect as connect

__all__ = ["Client", "Connecting", "Handover", "Model", "connect"]
