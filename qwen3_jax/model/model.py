"""A checkpoint in memory: configs, module definitions (graphdefs) and one tree of parameters."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax.checkpoint import converted as checkpoint
from qwen3_jax.checkpoint import published
from qwen3_jax.checkpoint.mapping import flatten, unflatten
from qwen3_jax.checkpoint.published import Parts
from qwen3_jax.checkpoint.table import TABLE
from qwen3_jax.codec import Codec, Decoder, prepare
from qwen3_jax.model.config import CodecConfig, GenerationConfig, ModelConfig, TalkerConfig, check_together
from qwen3_jax.model.config_values import read
from qwen3_jax.model.layers import Linear
from qwen3_jax.model.talker import Talker
from qwen3_jax.model.x_vector import SpeakerEncoder
from qwen3_jax.runtime.devices import all_devices

DTYPES = ("float32", "bfloat16", "int8")  # of talker and predictor; int8: of their matrices, under float32 arithmetic


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
    paths are the published tensor names. Codec and speaker encoder are in float32. What only cloning needs may be left in the folder
    until then: ``later``.
    """

    config: ModelConfig
    codec_config: CodecConfig
    generation: GenerationConfig
    graphs: Graphs
    params: dict[str, Any]
    later: "Later | None" = None


class Later:
    """Parts of a checkpoint that are read from its folder each time that they are needed, and not kept: 0.2 GB at full size, 0.1 s."""

    def __init__(self, folder: Path, shapes: dict[str, Any], read: Callable[[Parts], dict[str, Any]]) -> None:
        self.shapes = shapes  # of the parts, as in Model.params
        self._folder, self._read = folder, read
        self._identity = checkpoint.identity(folder)

    def __call__(self, *place: str) -> Any:
        """The part at a place of Model.params, such as ``codec``, ``encoder``.

        Raises:
            ValueError: the folder is another one by now, or cannot be read.
        """
        try:
            if checkpoint.identity(self._folder) != self._identity:
                raise ValueError(f"{self._folder} was changed after the model was loaded, so it cannot clone voices: load it again")
            tree = self._read(lambda path: path.startswith(".".join(place) + "."))
        except OSError as error:
            why = f"{self._folder} cannot be read any more ({error.strerror})"
            raise ValueError(f"{why}, which cloning needs: load the model again") from error
        return functools.reduce(lambda found, key: found[key], place, tree)


def part(model: Model, *place: str) -> Any:
    """The parameters of a part that only cloning needs. Errors as in ``Later``."""
    found: Any = model.params
    for key in place:
        found = found.get(key)
        if found is None:
            assert model.later is not None, f"no parameters {'.'.join(place)}"
            return model.later(*place)
    return found


def abstract(
    config: ModelConfig, codec: CodecConfig, dtype: jnp.dtype = jnp.float32, stored: jnp.dtype | None = None,
    text: jnp.dtype | None = None,
) -> tuple[Graphs, dict[str, Any]]:  # fmt: skip
    """Module definitions and the tree of shapes and dtypes that a checkpoint of these configs fills.

    Args:
        config, codec: the checkpoint's.
        dtype: of the talker's activations, norms and biases.
        stored: of its matrices and tables; default ``dtype``. int8: of its matrices and its text embedding, each with a ``scale`` of one
            float32 a row beside it; its other tables are bfloat16 then.
        text: of its text embedding, if other than that. A wider one beside int8 is rounded when it is read.
    """
    dtype, stored = jnp.dtype(dtype), jnp.dtype(stored or dtype)
    text = jnp.dtype(text or stored)
    trees: dict[str, Any] = {}
    graphs: dict[str, Any] = {}

    def split(name: str, module: nnx.Module, dtype_of: Callable[[str, int], jnp.dtype]) -> Any:
        graph, state = nnx.split(module)
        graphs[name] = Definition(graph)
        tree = nnx.to_pure_dict(state)
        leaves = flatten(tree).items()
        return unflatten({path: jax.ShapeDtypeStruct(leaf.shape, dtype_of(path, leaf.ndim)) for path, leaf in leaves}, tree)

    def of_talker(path: str, axes: int) -> jnp.dtype:
        if axes == 1:
            return dtype
        if f"talker.{path}" == TABLE:
            return text
        return jnp.dtype(jnp.bfloat16) if stored == jnp.int8 and "embedding" in path else stored

    def float32(path: str, axes: int) -> jnp.dtype:
        return jnp.dtype(jnp.float32)

    trees["talker"] = split("talker", nnx.eval_shape(lambda: _talker(config.talker_config, stored, text)), of_talker)
    whole = nnx.eval_shape(lambda: Codec(codec))
    trees["codec"] = {
        "decoder": split("codec_decoder", whole.decoder, float32),
        "encoder": split("codec_encoder", whole.encoder, float32),
    }
    graphs["speaker_encoder"] = None
    if config.tts_model_type == "base":
        trees["speaker_encoder"] = split("speaker_encoder", nnx.eval_shape(lambda: SpeakerEncoder(config.speaker_encoder_config)), float32)
    return Graphs(**graphs), trees


def _talker(config: TalkerConfig, stored: jnp.dtype, text: jnp.dtype) -> Talker:
    talker = Talker(config)
    if stored == jnp.int8:
        talker.model.text_embedding.quantise(stored=text == jnp.int8)
        for _, module in nnx.iter_modules(talker):
            if isinstance(module, Linear):
                module.quantise()
    return talker


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


def is_int8(folder: Path) -> bool:
    """Whether a checkpoint's matrices are rounded to int8. Errors as in ``load``."""
    return checkpoint.is_converted(folder) and checkpoint.talker_dtype(folder) == np.int8


def check_stays_int8(folder: Path, stored: jnp.dtype) -> None:
    """Refuse to load an int8 checkpoint as anything else: what the rounding took away does not come back.

    Raises:
        ValueError: ``stored`` is not int8.
    """
    if stored != jnp.int8:
        raise ValueError(
            f"{folder} holds weights rounded to int8, and {jnp.dtype(stored).name} was asked for: leave the dtype out or give int8, or "
            "convert the published checkpoint again with another --dtype"
        )


def load(
    folder: Path, *, dtype: jnp.dtype = jnp.float32, device: jax.Device | None = None, stored: jnp.dtype | None = None, lean: bool = False
) -> Model:
    """Load a converted checkpoint, or one in the published safetensors layout, onto ``device``.

    Args:
        folder: the checkpoint.
        dtype: of the talker's arithmetic; with int8 float32.
        device: default: JAX's first.
        stored: dtype in which the talker's matrices are kept. Default: ``dtype``; but int8 ones stay int8, and on a CPU float32
            arithmetic keeps weights that were published in bfloat16 as they are, which changes no result and halves the bytes of a frame.
        lean: keep in memory what speaking needs only. What only cloning needs is read for each voice that is cloned (``part``), and on a
            CPU the text embedding stays in its file. Of int8, the codec's decoder is prepared for speed (codec/upsampler.py).

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: a config or tensor that does not fit, which is named; other weights than int8 asked of an int8 folder; or no device
            that JAX can start.
    """
    configs = read_configs(folder)
    source = checkpoint if checkpoint.is_converted(folder) else published
    kept = source.talker_dtype(folder)
    on_cpu = (device or all_devices()[0]).platform == "cpu"
    if stored is None:
        narrow = kept == jnp.int8 or (on_cpu and kept == jnp.bfloat16)
        stored = kept if narrow else dtype
    if kept == jnp.int8:
        check_stays_int8(folder, stored)
    if stored == jnp.int8:
        dtype = jnp.dtype(jnp.float32)
    in_file = lean and on_cpu
    text = source.table_dtype(folder) if in_file or stored == jnp.int8 else None
    graphs, shapes = abstract(configs[0], configs[1], dtype, stored, text)
    reader = checkpoint.load if source is checkpoint else published.load_published
    read = functools.partial(reader, folder, shapes, device=device, map_table=in_file)
    if not lean:
        return Model(*configs, graphs, read())
    cloning = {key: value for key, value in shapes.items() if key == "speaker_encoder"}
    cloning["codec"] = {"encoder": shapes["codec"]["encoder"]}
    later = Later(folder, cloning, lambda parts: read(parts=parts))
    params = read(parts=lambda path: not path.startswith(("codec.encoder.", "speaker_encoder.")))
    if stored == jnp.int8:  # it rounds anyway, so the codec may, a little; without it the codec is computed as published
        params["codec"]["decoder"] = prepare(params["codec"]["decoder"])
        prepared = nnx.eval_shape(lambda: Decoder(configs[1].decoder_config, prepared=True))
        graphs = graphs._replace(codec_decoder=Definition(nnx.split(prepared)[0]))
    return Model(*configs, graphs, params, later)
