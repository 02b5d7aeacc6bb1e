"""Published tensor names and shapes + the abstract parameter tree -> TensorPlan: which source fills which target (and index).

The whole conversion is these tables: tensors keep their published names and layouts, the parts get a place in the tree,
and tables that exist once per codebook are stacked along a new axis 0. It is a bijection: whatever does not fit raises.
Names and shapes only; no file is opened here (published.py does that).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PARTS = {
    # source prefix -> place in the tree; the first two are in model.safetensors, the others in speech_tokenizer/
    "talker.": "talker.",
    "speaker_encoder.": "speaker_encoder.",  # read for Base checkpoints only; fine-tuned ones may still have it
    "decoder.": "codec.decoder.",
    "encoder.": "codec.encoder.",
}

_SPEAKER_ENCODER = PARTS["speaker_encoder."]
_ENCODER_RVQ = "encoder.quantizer.{part}_residual_vector_quantizer"
_SURPLUS_BOOKS = "the file has 31 acoustic codebooks, encoding uses the first encoder_valid_num_quantizers - 1 = 15"


@dataclass(frozen=True)
class Stack:
    """``source`` with a book number at {i} -> index i of ``target``. With ``surplus``, indices past the target are ignored."""

    source: str
    target: str
    surplus: str | None = None


STACKED = (
    # the predictor's input tables, one per book 1..15: looked up by a traced book number, so they are one array
    Stack("talker.code_predictor.model.codec_embedding.{i}.weight", "talker.code_predictor.model.codec_embedding.weight"),
    # the decoder's codebooks (book 0, then books 1..15): all looked up in one gather
    Stack("decoder.quantizer.rvq_first.vq.layers.{i}._codebook.embedding_sum", "codec.decoder.quantizer.rvq_first.vq.embedding_sum"),
    Stack("decoder.quantizer.rvq_first.vq.layers.{i}._codebook.cluster_usage", "codec.decoder.quantizer.rvq_first.vq.cluster_usage"),
    Stack("decoder.quantizer.rvq_rest.vq.layers.{i}._codebook.embedding_sum", "codec.decoder.quantizer.rvq_rest.vq.embedding_sum"),
    Stack("decoder.quantizer.rvq_rest.vq.layers.{i}._codebook.cluster_usage", "codec.decoder.quantizer.rvq_rest.vq.cluster_usage"),
    # the encoder's codebooks: searched one after the other in a scan
    *(
        Stack(f"{rvq}.layers.{{i}}.codebook.{table}", f"codec.{rvq}.{table}", surplus)
        for rvq, surplus in ((_ENCODER_RVQ.format(part="semantic"), None), (_ENCODER_RVQ.format(part="acoustic"), _SURPLUS_BOOKS))
        for table in ("embed_sum", "cluster_usage")
    ),
)

RENAMED = (
    # transformers 5 moved Mimi's parts below its encoder: pattern -> the published name
    (r"encoder\.encoder\.encoder_seanet\.(.+)", r"encoder.encoder.\1"),
    (r"encoder\.encoder\.((?:encoder_transformer|downsample|quantizer)\..+)", r"encoder.\1"),
)

IGNORED = (
    # pattern, reason
    (r".+\.rotary_emb\.(?:original_)?inv_freq|.+\.position_ids", "computed from rope_theta; older versions of transformers saved it"),
    (r"encoder\.quantizer\.\w+\.layers\.\d+\.codebook\.initialized", "a flag of the codebooks' training"),
    (r"decoder\.quantizer\.rvq_(first|rest)\.input_proj\.weight", "of the encoding direction, which the decoder does not go"),
    (r"encoder\.quantizer\.\w+\.output_proj\.weight", "of the decoding direction, which the encoder does not go"),
)

_STACKED = tuple((re.compile(re.escape(row.source).replace(r"\{i\}", r"(0|[1-9]\d*)")), row) for row in STACKED)
_RENAMED = tuple((re.compile(pattern), name) for pattern, name in RENAMED)
_IGNORED = tuple((re.compile(pattern), reason) for pattern, reason in IGNORED)
_STACK_OF = {row.target: row for row in STACKED}

Shape = tuple[int, ...]


class ConversionError(ValueError):
    """A checkpoint that cannot be mapped one to one onto the model."""


class UnmatchedTensor(ConversionError):
    """A source tensor that no row of the table, or no parameter of the model, takes."""


class DuplicateTensor(ConversionError):
    """Two source tensors for one place."""


class UnfilledTensor(ConversionError):
    """A parameter, or one index of a stacked parameter, for which there is no source tensor."""


class MisshapedTensor(ConversionError):
    """A source tensor whose shape is not that of its place."""


class Target(NamedTuple):
    """A place in the tree: dotted path, and the index along axis 0 when several sources are stacked there."""

    path: str
    number: int | None


class Ignored(NamedTuple):
    """A source tensor that is left out on purpose."""

    reason: str


@dataclass(frozen=True)
class TensorPlan:
    """Sources of each target, in the order of the number; ``stacked``: the targets that have an axis 0 for them."""

    sources: dict[str, list[str]] = field(default_factory=dict)
    stacked: frozenset[str] = frozenset()
    ignored: dict[str, str] = field(default_factory=dict)  # source name -> reason


def target_of(name: str) -> Target | Ignored:
    """The table, looked up.

    Raises:
        UnmatchedTensor: no row knows the name.
    """
    for pattern, published in _RENAMED:
        if pattern.fullmatch(name):
            name = pattern.sub(published, name)
    for pattern, reason in _IGNORED:
        if pattern.fullmatch(name):
            return Ignored(reason)
    for pattern, row in _STACKED:
        if match := pattern.fullmatch(name):
            return Target(row.target, int(match[1]))
    for prefix, place in PARTS.items():
        if name.startswith(prefix):
            return Target(place + name.removeprefix(prefix), None)
    raise UnmatchedTensor(
        f"unmatched tensor {name!r}: expected a name that starts with one of {', '.join(PARTS)}; "
        "this is not a Qwen3-TTS 12 Hz checkpoint, or a file of another model lies in the folder"
    )


def source_of(target: Target) -> str:
    """The inverse of ``target_of``: the published name of a place."""
    if target.number is not None:
        return _STACK_OF[target.path].source.replace("{i}", str(target.number))
    prefix, place = next((prefix, place) for prefix, place in PARTS.items() if target.path.startswith(place))
    return prefix + target.path.removeprefix(place)


def make_plan(shapes: Mapping[str, Shape], abstract: Mapping[str, Any]) -> TensorPlan:
    """Match source names and shapes with the parameters of a model, one to one.

    Args:
        shapes: source name -> shape.
        abstract: the (nested) parameter tree; leaves have a ``shape``.

    Raises:
        UnmatchedTensor, DuplicateTensor, UnfilledTensor, MisshapedTensor: name the tensor, what was expected and found.
    """
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}
    has_speaker_encoder = any(path.startswith(_SPEAKER_ENCODER) for path in wanted)
    filled: dict[Target, str] = {}
    ignored: dict[str, str] = {}
    for name, shape in shapes.items():
        target = target_of(name)
        if isinstance(target, Ignored):
            ignored[name] = target.reason
            continue
        path, index = target
        if path.startswith(_SPEAKER_ENCODER) and not has_speaker_encoder:
            ignored[name] = "only a Base checkpoint clones voices"
            continue
        if path not in wanted or (index is None and path in _STACK_OF):  # the latter: a stacked table's own name, whole
            raise UnmatchedTensor(
                f"unmatched tensor {name!r} {list(shape)}: the model that config.json describes has no parameter {path!r}; "
                "check that config.json (sizes, tts_model_type) belongs to these weights"
            )
        if index is not None and index >= wanted[path][0]:
            surplus = _STACK_OF[path].surplus
            if surplus is None:
                raise UnmatchedTensor(
                    f"unmatched tensor {name!r}: {path!r} has {wanted[path][0]} indices (0..{wanted[path][0] - 1}), found index {index}; "
                    "check that config.json belongs to these weights"
                )
            ignored[name] = surplus
            continue
        if target in filled:
            place = f"{_place(target)} is already filled by {filled[target]!r}"
            raise DuplicateTensor(f"duplicate tensor {name!r}: {place}; remove one of the two")
        expected = wanted[path] if index is None else wanted[path][1:]
        if tuple(shape) != expected:
            raise MisshapedTensor(
                f"misshaped tensor {name!r}: expected {list(expected)} for {_place(target)}, found {list(shape)}; "
                "check that config.json belongs to these weights"
            )
        filled[target] = name
    sources = {path: [_filled_by(filled, target) for target in targets(path, shape)] for path, shape in wanted.items()}
    return TensorPlan(sources, frozenset(_STACK_OF) & wanted.keys(), ignored)


def targets(path: str, shape: Shape) -> list[Target]:
    """All places of a parameter: one per index where sources are stacked, else one."""
    return [Target(path, index) for index in range(shape[0])] if path in _STACK_OF else [Target(path, None)]


def _filled_by(filled: Mapping[Target, str], target: Target) -> str:
    if target not in filled:
        raise UnfilledTensor(
            f"unfilled parameter {_place(target)}: expected a tensor {source_of(target)!r}, found none; "
            "the download is incomplete (fetch the folder again) or config.json belongs to other weights"
        )
    return filled[target]


def _place(target: Target) -> str:
    return repr(target.path) if target.number is None else f"{target.path!r} index {target.number}"


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> {dotted path: leaf}, in the tree's order. Keys may be strings or the ints of a list."""
    return dict(_walk(tree, prefix))


def _walk(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def unflatten(flat: Mapping[str, Any], abstract: Mapping[Any, Any], prefix: str = "") -> dict[Any, Any]:
    """{dotted path: leaf} -> nested dicts with the keys (and key types) of ``abstract``; what is not in ``flat`` is left out."""
    tree: dict[Any, Any] = {}
    for key, value in abstract.items():
        if not isinstance(value, Mapping):
            if (path := f"{prefix}{key}") in flat:
                tree[key] = flat[path]
        elif (below := unflatten(flat, value, f"{prefix}{key}.")) or not value:
            tree[key] = below
    return tree
