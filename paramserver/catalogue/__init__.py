"""The state machine of group 0: models, placement, workers, leases."""
