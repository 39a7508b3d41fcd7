"""The state machine of a data group."""
