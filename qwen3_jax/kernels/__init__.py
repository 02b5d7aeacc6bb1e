"""Compiled kernels for CPUs, in one library. It may be missing: then XLA computes the same."""
