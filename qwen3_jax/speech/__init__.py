"""Speaking, but for the engine: a text and how to speak it -> the engine's request; its packets -> an utterance."""
