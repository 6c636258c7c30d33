"""Side-by-side runs against other tools, on one cluster, in one go: `python -m benchmarks`."""
