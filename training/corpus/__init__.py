"""Sentences and teachers -> a corpus of speech on disk."""
