"""What a request must be before it is spoken, the same for WebSocket and HTTP: its fields, text, language, and the engine's state."""
