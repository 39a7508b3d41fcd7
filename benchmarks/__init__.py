"""One thin file a claim; results in `results/`. `python -m benchmarks.push_pull --help`."""
