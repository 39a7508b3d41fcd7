"""The local cluster of processes that demo, tests and benchmarks share."""
