"""The WebSocket, ``/api/v1/speak``: what may be said (protocol, machine), by whom (session, client), what is sent (playback, outgoing)."""
