"""Voices: what tells one from another, the folders in which they lie, and how one is named."""
