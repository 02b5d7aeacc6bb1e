"""Engines: text and a voice -> pcm, behind one protocol (base); the factory is ``server.engines.factory``."""
