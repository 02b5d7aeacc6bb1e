"""Training of the codec: its decoder, its encoder, and what judges them."""
