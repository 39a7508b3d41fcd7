"""The array namespace: NumPy or CuPy."""
