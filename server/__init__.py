"""The WebSocket server: text in, PCM out while it is being made. It sees text, voices' names and pcm; never a model's arrays."""
