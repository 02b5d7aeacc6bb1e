"""Published checkpoints -> converted ones (``python -m convert SRC DST``), and the proof that they compute the same."""
