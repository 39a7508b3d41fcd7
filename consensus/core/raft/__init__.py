"""The Raft state machine, one concern a file."""
