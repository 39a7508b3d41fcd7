"""Consensus protocols without IO: no clock, threads, randomness, files or network."""
