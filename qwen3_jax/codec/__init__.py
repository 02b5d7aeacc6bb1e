"""The 12.5 Hz speech tokenizer: codes [B N K] <-> wave [B N*1920] at 24 kHz, always in float32."""

from flax import nnx

from qwen3_jax.codec.decoder import Decoder, DecoderState, check_state, init_state, prepare
from qwen3_jax.codec.encoder import Encoder
from qwen3_jax.model.config import CodecConfig

__all__ = ["Codec", "Decoder", "DecoderState", "Encoder", "check_state", "init_state", "prepare"]


class Codec(nnx.Module):
    """Both halves, under the names of the published file. The encoder has the books that are used, not all in the file."""

    def __init__(self, cfg: CodecConfig) -> None:
        self.decoder = Decoder(cfg.decoder_config)
        self.encoder = Encoder(cfg.encoder_config, cfg.encoder_valid_num_quantizers)
