"""Faults put into real clusters under checked load, judged and written down: `paramserver chaos run` and `soak`."""
