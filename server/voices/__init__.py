"""Voices of the server: where they lie (store), what a recording must be (checks), names, kept prompts (cache), and the command."""
