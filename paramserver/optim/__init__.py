"""Optimizers: pure functions on blocks of weights, slots and gradient."""
