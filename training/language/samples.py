"""Parameters in training -> wavs of held-out sentences, by the product's own generation and the run's decoder as far as it is.

For the ear, and for ``evaluate --judge``: a folder of ``0000.wav``, ... and ``sentences.txt``.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from qwen3_jax.audio.samples import load_audio, write_wav
from qwen3_jax.checkpoint.mapping import unflatten
from qwen3_jax.engine import Request, Segment
from qwen3_jax.model.config import CodecConfig, GenerationConfig, ModelConfig
from qwen3_jax.model.encode import encode_x_vector
from qwen3_jax.model.model import Model, abstract
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.speech.utterance import batch
from qwen3_jax.text.prompt import build
from qwen3_jax.text.tokenizer import Tokenizer
from training.optimiser import Flat

FRAMES = 112  # at most


def assemble_model(config: ModelConfig, codec: CodecConfig, params: dict[str, Any], decoder: Flat) -> Model:
    """A model that speaks, without a codec encoder. ``decoder``: dotted path -> array."""
    graphs, shapes = abstract(config, codec)
    tree = unflatten({path: jnp.asarray(value) for path, value in decoder.items()}, shapes["codec"]["decoder"])
    return Model(config, codec, GenerationConfig(), graphs, {**params, "codec": {"decoder": tree, "encoder": {}}})


def speak(model: Model, reader: Tokenizer, teacher: Path, count: int, folder: Path) -> float:
    """Say the first ``count`` sentences that a teacher has read, side by side, in the voice of its first clip.

    Args:
        model: of `assemble_model`.
        reader: the run's tokenizer.
        teacher: a folder of wavs and sentences.txt, of ``training.corpus --held-out``.
        count: at most what fits one batch.
        folder: where the wavs go.

    Returns:
        Share of the utterances that ended by themselves.
    """
    texts = (teacher / "sentences.txt").read_text("utf-8").splitlines()[:count]
    x_vector = encode_x_vector(model, load_audio(teacher / "0000.wav"))
    prompts = (build(model.config, reader.assistant(text), language="english", x_vector=x_vector) for text in texts)
    spoken = batch(model, [Request((Segment(one, FRAMES),), Sampling(), seed) for seed, one in enumerate(prompts)])
    folder.mkdir(parents=True, exist_ok=True)
    for row, speech in enumerate(spoken):
        write_wav(folder / f"{row:04}.wav", speech.pcm)
    (folder / "sentences.txt").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return sum(speech.finish_reason == "eos" for speech in spoken) / len(texts)
