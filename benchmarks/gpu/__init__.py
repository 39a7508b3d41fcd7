"""The way between a GPU and host memory: `python -m benchmarks.gpu`."""
