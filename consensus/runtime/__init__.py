"""Drives many groups: inputs to the core, persisting and sending in parallel, applying, timers."""
