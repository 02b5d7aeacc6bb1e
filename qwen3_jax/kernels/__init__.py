"""Compiled kernels for CPUs. Each may be missing: then XLA computes the same."""
