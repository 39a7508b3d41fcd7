"""Which hazards cannot be put back, and why: the rest must have a mutation."""

HAZARDS = range(1, 42)
"""Rows of the list of bugs that other systems shipped."""
NOT_YET = {
    33: "comes with locks",
    38: "comes with worker sets that change: today a view is the model's fixed set of ranks, decided by group 0",
    39: "comes with asynchronous pushes, which bring sequence numbers per block",
}
