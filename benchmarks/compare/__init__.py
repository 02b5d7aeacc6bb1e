"""This project beside others, same weights, same request, one run: ``python -m benchmarks.compare``."""
