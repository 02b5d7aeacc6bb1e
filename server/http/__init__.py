"""HTTP: OpenAI's endpoint, voices, the description (schema), the page; what all routes share (web); how heads and bodies are read."""
