"""What `benchmarks.overload` is made of: a flood of clients, and the watch over the servers meanwhile."""
