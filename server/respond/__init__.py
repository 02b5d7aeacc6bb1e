"""The answer to what a client has said: a responder (echo, or a chat endpoint), and the conversation that it takes part in."""
