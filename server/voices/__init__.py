"""Voices of the server: where they lie (store), what a recording must be (checks), and their REST interface (routes)."""
