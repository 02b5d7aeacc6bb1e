"""Checkpoints on a disk: published and converted ones, the names of their tensors, the hub, files written whole."""
