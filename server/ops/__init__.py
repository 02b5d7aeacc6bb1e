"""What keeps a server up: who may ask (auth, limits), how much comes in (connections), what is told (logs, metrics), the end (drain)."""
