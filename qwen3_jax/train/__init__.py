"""Training: sentences -> teacher speech -> a checkpoint. Nothing here is imported by what speaks."""
