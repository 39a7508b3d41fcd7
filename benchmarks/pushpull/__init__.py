"""What `benchmarks.push_pull` is made of: systems that push and pull, turns between them, suites, tables, plots."""
