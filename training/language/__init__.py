"""Training of the language model: talker, predictor and speaker encoder together."""
