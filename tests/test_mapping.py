"""The table against the published tensor lists, its inverse, and each way in which a checkpoint can fail to fit."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from qwen3_jax.checkpoint import mapping
from qwen3_jax.checkpoint.mapping import (
    DuplicateTensor,
    Ignored,
    MisshapedTensor,
    Target,
    UnfilledTensor,
    UnmatchedTensor,
    make_plan,
    source_of,
    target_of,
)
from qwen3_jax.model.config import CodecConfig, ModelConfig
from qwen3_jax.model.config_values import read
from qwen3_jax.model.model import abstract
from qwen3_jax.testing import read_tensor_list

REFERENCE = Path(__file__).parent / "reference"
CHECKPOINTS = ("0.6B-Base", "0.6B-CustomVoice", "1.7B-Base", "1.7B-CustomVoice", "1.7B-VoiceDesign")
TOKENIZER = "Tokenizer-12Hz"

Shapes = dict[str, tuple[int, ...]]


def tensors(name: str) -> Shapes:
    """A published tensor list: name -> shape."""
    return {full: listed.shape for full, listed in read_tensor_list(REFERENCE / f"{name}.tensors.tsv").items()}


def real_tree(name: str) -> dict[str, Any]:
    codec = read(CodecConfig, REFERENCE / f"{TOKENIZER}.config.json")
    return abstract(read(ModelConfig, REFERENCE / f"{name}.config.json"), codec)[1]


def leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# A model small enough to see: two tables stacked, one plain tensor, one codebook that is used of the file's two.
TABLES = "talker.code_predictor.model.codec_embedding"
BOOKS = "encoder.quantizer.acoustic_residual_vector_quantizer"
SMALL: Shapes = {
    "talker.codec_head.weight": (5, 3),
    f"{TABLES}.0.weight": (4, 3),
    f"{TABLES}.1.weight": (4, 3),
    f"{BOOKS}.layers.0.codebook.embed_sum": (8, 2),
    f"{BOOKS}.layers.1.codebook.embed_sum": (8, 2),
    f"{BOOKS}.layers.0.codebook.initialized": (1,),
}
SMALL_TREE: dict[str, Any] = {
    "talker": {"codec_head": {"weight": leaf(5, 3)}, "code_predictor": {"model": {"codec_embedding": {"weight": leaf(2, 4, 3)}}}},
    "codec": {"encoder": {"quantizer": {"acoustic_residual_vector_quantizer": {"embed_sum": leaf(1, 8, 2)}}}},
}


@pytest.mark.parametrize(("name", "count"), list(zip(CHECKPOINTS, (478, 402, 480, 404, 404), strict=True)))
def test_published_checkpoint_is_a_bijection(name: str, count: int) -> None:
    shapes = tensors(name)
    codec = tensors(TOKENIZER)
    assert (len(shapes), len(codec)) == (count, 496)
    plan = make_plan(shapes | codec, real_tree(name))
    used = [source for sources in plan.sources.values() for source in sources]
    assert len(used) == len(set(used)) == count + 496 - len(plan.ignored)
    assert set(used) | plan.ignored.keys() == shapes.keys() | codec.keys()
    # 16 unused acoustic books of two tables, 32 flags, 2 + 2 projections of the other direction
    assert len(plan.ignored) == 32 + 32 + 4
    assert all(reason for reason in plan.ignored.values())


@pytest.mark.parametrize("name", [*CHECKPOINTS, TOKENIZER])
def test_the_table_inverts(name: str) -> None:
    for source in tensors(name):
        target = target_of(source)
        assert isinstance(target, Ignored) or source_of(target) == source


def test_every_row_of_the_table_is_used() -> None:
    names = set().union(*(tensors(name) for name in (*CHECKPOINTS, TOKENIZER)))
    targets = [target_of(name) for name in names]
    assert {row.target for row in mapping.STACKED} == {t.path for t in targets if isinstance(t, Target) and t.number is not None}
    assert all(any(name.startswith(prefix) for name in names) for prefix in mapping.PARTS)
    published = {t.reason for t in targets if isinstance(t, Ignored)}
    assert {reason for _, reason in mapping.IGNORED} == published | {target_of("talker.model.rotary_emb.inv_freq").reason}


def test_names_of_transformers_5() -> None:
    """MimiModel of transformers 5.24.0 keeps its parts below ``encoder``; the tensors are the same."""
    for published in tensors(TOKENIZER):
        part, _, rest = published.partition(".")
        if part == "encoder":
            name = (
                f"encoder.encoder.encoder_seanet.{rest.removeprefix('encoder.')}"
                if rest.startswith("encoder.")
                else f"encoder.encoder.{rest}"
            )
            assert target_of(name) == target_of(published)


def test_a_speaker_encoder_that_nothing_reads() -> None:
    """Fine-tuned custom_voice checkpoints may still have the Base checkpoint's."""
    plan = make_plan(SMALL | {"speaker_encoder.fc.weight": (4, 4, 1)}, SMALL_TREE)
    assert plan.ignored["speaker_encoder.fc.weight"] == "only a Base checkpoint clones voices"
    with pytest.raises(UnmatchedTensor):
        make_plan(SMALL | {"speaker_encoder.other": (1,)}, SMALL_TREE | {"speaker_encoder": {"fc": leaf(4, 4, 1)}})


def test_stacking_keeps_the_order_of_the_slots() -> None:
    plan = make_plan(dict(reversed(SMALL.items())), SMALL_TREE)
    assert plan.sources["talker.code_predictor.model.codec_embedding.weight"] == [f"{TABLES}.0.weight", f"{TABLES}.1.weight"]
    assert plan.sources["talker.codec_head.weight"] == ["talker.codec_head.weight"]
    assert plan.stacked == {"talker.code_predictor.model.codec_embedding.weight", f"codec.{BOOKS}.embed_sum"}
    assert plan.ignored.keys() == {f"{BOOKS}.layers.1.codebook.embed_sum", f"{BOOKS}.layers.0.codebook.initialized"}


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"lm_head.weight": (1,)}, UnmatchedTensor, ["'lm_head.weight'", "starts with one of talker."]),
        ({"talker.extra.bias": (7,)}, UnmatchedTensor, ["'talker.extra.bias' [7]", "no parameter 'talker.extra.bias'", "config.json"]),
        ({f"{TABLES}.2.weight": (4, 3)}, UnmatchedTensor, [f"'{TABLES}.2.weight'", "2 indices (0..1), found index 2"]),
        ({f"{TABLES}.weight": (2, 4, 3)}, UnmatchedTensor, [f"'{TABLES}.weight'"]),
        ({f"{TABLES}.00.weight": (4, 3)}, UnmatchedTensor, [f"'{TABLES}.00.weight'"]),
        ({"talker.codec_head.weight": None}, UnfilledTensor, ["'talker.codec_head.weight'", "found none", "fetch"]),
        ({f"{TABLES}.1.weight": None}, UnfilledTensor, ["index 1", f"'{TABLES}.1.weight'"]),
        ({"talker.codec_head.weight": (3, 5)}, MisshapedTensor, ["'talker.codec_head.weight'", "expected [5, 3]", "found [3, 5]"]),
        ({f"{TABLES}.1.weight": (4, 2)}, MisshapedTensor, [f"'{TABLES}.1.weight'", "expected [4, 3]", "index 1", "found [4, 2]"]),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, tuple[int, ...] | None], kind: type[ValueError], words: list[str]) -> None:
    shapes = {name: shape for name, shape in (SMALL | change).items() if shape is not None}
    with pytest.raises(kind) as caught:
        make_plan(shapes, SMALL_TREE)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_sources_for_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    # The table itself cannot send two names to one place (it inverts), so the guard is tested with a table that can.
    monkeypatch.setitem(mapping.PARTS, "other.", "talker.")
    with pytest.raises(DuplicateTensor, match=r"'other\.codec_head\.weight'.*already filled by 'talker\.codec_head\.weight'"):
        make_plan(SMALL | {"other.codec_head.weight": (5, 3)}, SMALL_TREE)


def test_trees_with_list_and_string_keys_round_trip() -> None:
    tree = {"layers": {0: {"w": 1}, 1: {"w": 2}}, "gaps": {"3": {"w": 3}}}
    flat = mapping.flatten(tree)
    assert flat == {"layers.0.w": 1, "layers.1.w": 2, "gaps.3.w": 3}
    assert mapping.unflatten(flat, tree) == tree
