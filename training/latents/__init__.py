"""Speech -> what each codec frame says, without a network: pitch, levels, phonemes, and the books behind the codes."""
