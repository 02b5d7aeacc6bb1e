"""What WebSocket and HTTP share between a client's words and the engine: fields, text, language, voice, engine's state, retry."""
