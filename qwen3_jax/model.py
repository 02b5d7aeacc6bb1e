"""A checkpoint in memory: configs, module definitions (graphdefs) and one tree of parameters."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax import checkpoint, published
from qwen3_jax.codec import Codec
from qwen3_jax.config import CodecConfig, GenerationConfig, ModelConfig, read
from qwen3_jax.speaker import SpeakerEncoder
from qwen3_jax.talker import Talker


class Graphs(NamedTuple):
    """Static module definitions, hashable: the compiled functions take them as static arguments."""

    talker: Any
    codec_decoder: Any
    codec_encoder: Any
    speaker_encoder: Any | None  # only Base checkpoints have one


class Model(NamedTuple):
    """What every other part computes with.

    ``params`` = {"talker": ..., "codec": {"decoder": ..., "encoder": ...}, "speaker_encoder": ... (Base only)}; dotted
    paths are the published tensor names. Talker in ``dtype``; codec and speaker encoder in float32.
    """

    config: ModelConfig
    codec_config: CodecConfig
    generation: GenerationConfig
    graphs: Graphs
    params: dict[str, Any]


def abstract(config: ModelConfig, codec: CodecConfig, dtype: jnp.dtype = jnp.float32) -> tuple[Graphs, dict[str, Any]]:
    """Module definitions and the tree of shapes and dtypes that a checkpoint of these configs fills."""
    trees: dict[str, Any] = {}
    graphs: dict[str, Any] = {}

    def split(name: str, build: Any, dtype: jnp.dtype) -> Any:
        graph, state = nnx.split(nnx.eval_shape(build))
        graphs[name] = graph
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nnx.to_pure_dict(state))

    trees["talker"] = split("talker", lambda: Talker(config.talker_config), dtype)
    whole = Codec
    trees["codec"] = {
        "decoder": split("codec_decoder", lambda: whole(codec).decoder, jnp.float32),
        "encoder": split("codec_encoder", lambda: whole(codec).encoder, jnp.float32),
    }
    graphs["speaker_encoder"] = None
    if config.tts_model_type == "base":
        trees["speaker_encoder"] = split("speaker_encoder", lambda: SpeakerEncoder(config.speaker_encoder_config), jnp.float32)
    return Graphs(**graphs), trees


def read_configs(folder: Path) -> tuple[ModelConfig, CodecConfig, GenerationConfig]:
    """The three JSON files of a checkpoint folder.

    Raises:
        FileNotFoundError: ``folder`` is no checkpoint; the message names the missing file.
        ValueError: a file that cannot be used, and why.
    """
    for name in ("config.json", "speech_tokenizer/config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a checkpoint: it has no {name}")
    generation = folder / "generation_config.json"
    return (
        read(ModelConfig, folder / "config.json"),
        read(CodecConfig, folder / "speech_tokenizer" / "config.json"),
        read(GenerationConfig, generation) if generation.is_file() else GenerationConfig(),
    )


def load(folder: Path, *, dtype: jnp.dtype = jnp.float32, device: jax.Device | None = None) -> Model:
    """Load a converted checkpoint, or one in the published safetensors layout, into ``dtype`` on ``device``.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: a config or tensor that does not fit; names it.
    """
    configs = read_configs(folder)
    graphs, shapes = abstract(configs[0], configs[1], dtype)
    reader = checkpoint.load if checkpoint.is_converted(folder) else published.load_published
    return Model(*configs, graphs, reader(folder, shapes, device=device))
