"""HTTP: OpenAI's endpoint, what all routes share (web), the description (schema), the page, and how bodies and heads are read."""
