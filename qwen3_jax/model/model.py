"""A checkpoint in memory: configs, module definitions (graphdefs) and one tree of parameters."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.checkpoint import converted as checkpoint
from qwen3_jax.checkpoint import published
from qwen3_jax.codec import Codec, Decoder, prepare
from qwen3_jax.model.config import CodecConfig, GenerationConfig, ModelConfig, check_together
from qwen3_jax.model.config_values import read
from qwen3_jax.model.talker import Talker
from qwen3_jax.model.x_vector import SpeakerEncoder
from qwen3_jax.runtime.devices import all_devices


class Definition(nnx.GraphDef[Any]):
    """A GraphDef that is hashed once. flax's goes through all its nodes whenever a compiled function is called with it: 1.5 ms for the
    small talker and its decoder each, half of what a launch of the engine costs the host."""

    _hash: int

    def __init__(self, graph: nnx.GraphDef[Any]) -> None:
        super().__init__(graph.nodes, graph.attributes, graph.num_leaves)
        object.__setattr__(self, "_hash", hash(graph))

    def __hash__(self) -> int:
        return self._hash


class Graphs(NamedTuple):
    """Static module definitions, hashable: the compiled functions take them as static arguments."""

    talker: Any
    codec_decoder: Any
    codec_encoder: Any
    speaker_encoder: Any | None  # only Base checkpoints have one


class Model(NamedTuple):
    """What every other part computes with.

    ``params`` = {"talker": ..., "codec": {"decoder": ..., "encoder": ...}, "speaker_encoder": ... (Base only)}; dotted
    paths are the published tensor names. Codec and speaker encoder are in float32.
    """

    config: ModelConfig
    codec_config: CodecConfig
    generation: GenerationConfig
    graphs: Graphs
    params: dict[str, Any]


def abstract(
    config: ModelConfig, codec: CodecConfig, dtype: jnp.dtype = jnp.float32, stored: jnp.dtype | None = None
) -> tuple[Graphs, dict[str, Any]]:
    """Module definitions and the tree of shapes and dtypes that a checkpoint of these configs fills.

    Args:
        config, codec: the checkpoint's.
        dtype: of the talker's activations, norms and biases.
        stored: of its matrices and tables; default ``dtype``.
    """
    trees: dict[str, Any] = {}
    graphs: dict[str, Any] = {}

    def split(name: str, build: Any, dtype: jnp.dtype, stored: jnp.dtype) -> Any:
        graph, state = nnx.split(nnx.eval_shape(build))
        graphs[name] = Definition(graph)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, stored if leaf.ndim > 1 else dtype), nnx.to_pure_dict(state))

    trees["talker"] = split("talker", lambda: Talker(config.talker_config), dtype, stored or dtype)
    whole = Codec
    trees["codec"] = {
        "decoder": split("codec_decoder", lambda: whole(codec).decoder, jnp.float32, jnp.float32),
        "encoder": split("codec_encoder", lambda: whole(codec).encoder, jnp.float32, jnp.float32),
    }
    graphs["speaker_encoder"] = None
    if config.tts_model_type == "base":
        trees["speaker_encoder"] = split("speaker_encoder", lambda: SpeakerEncoder(config.speaker_encoder_config), jnp.float32, jnp.float32)
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
    config, codec = read(ModelConfig, folder / "config.json"), read(CodecConfig, folder / "speech_tokenizer" / "config.json")
    try:
        check_together(config, codec)
    except ValueError as error:
        raise ValueError(f"{folder / 'speech_tokenizer' / 'config.json'}: {error}") from error
    return config, codec, read(GenerationConfig, generation) if generation.is_file() else GenerationConfig()


def load(folder: Path, *, dtype: jnp.dtype = jnp.float32, device: jax.Device | None = None, stored: jnp.dtype | None = None) -> Model:
    """Load a converted checkpoint, or one in the published safetensors layout, onto ``device``; the codec's decoder is prepared for speed.

    Args:
        folder: the checkpoint.
        dtype: of the talker's arithmetic.
        device: default: JAX's first.
        stored: dtype in which the talker's matrices are kept. Default: ``dtype``; but on a CPU float32 arithmetic keeps
            weights that were published in bfloat16 as they are, which changes no result and halves the bytes of a frame.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: a config or tensor that does not fit, which is named; or no device that JAX can start.
    """
    configs = read_configs(folder)
    source = checkpoint if checkpoint.is_converted(folder) else published
    if stored is None:
        on_cpu = (device or all_devices()[0]).platform == "cpu"
        stored = jnp.dtype(jnp.bfloat16) if on_cpu and source.talker_dtype(folder) == jnp.bfloat16 else dtype
    graphs, shapes = abstract(configs[0], configs[1], dtype, stored)
    reader = checkpoint.load if source is checkpoint else published.load_published
    params = reader(folder, shapes, device=device)
    params["codec"]["decoder"] = prepare(params["codec"]["decoder"])
    prepared = nnx.eval_shape(lambda: Decoder(configs[1].decoder_config, prepared=True))
    graphs = graphs._replace(codec_decoder=Definition(nnx.split(prepared)[0]))
    return Model(*configs, graphs, params)
