"""The network and what it computes: configs, layers, talker, predictor, speaker encoder, sampling. The codec has a room of its own."""
