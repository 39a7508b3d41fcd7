"""What benchmarks share: the description of the machine, the load, profiles."""
