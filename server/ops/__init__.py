"""What keeps a server up: who may ask (auth), how much (limits, connections), what the operator is told (logs, metrics), signals."""
