"""Training of the voice that ships: sentences -> teacher speech -> a checkpoint. Run from a checkout; no wheel has it."""
