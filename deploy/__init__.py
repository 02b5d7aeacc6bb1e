"""How the server is run for good. Only ``deploy.ray`` is Python."""
