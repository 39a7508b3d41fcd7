"""Parts of `benchmarks.commit`: a small server on the real runtime, its clients, and the peers it is compared with."""
