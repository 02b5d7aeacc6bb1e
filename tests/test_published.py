"""The published layout read and written: values, dtypes, shards, and every kind of damaged folder."""

import gc
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen3_jax.checkpoint import published
from qwen3_jax.checkpoint.mapping import DuplicateTensor, MisshapedTensor, UnfilledTensor, UnmatchedTensor, flatten
from qwen3_jax.checkpoint.published import DamagedFile, load_published, write_published
from qwen3_jax.model.config import CodecConfig, ModelConfig
from qwen3_jax.model.config_values import read
from qwen3_jax.model.model import abstract
from qwen3_jax.testing import write_checkpoint
from tests.test_mapping import SMALL, SMALL_TREE

TABLES = "talker.code_predictor.model.codec_embedding"
CODEC_NAMES = [name for name in SMALL if name.startswith("encoder.")]


def values(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0)
    return {name: noise.standard_normal(shape).astype(np.float32 if name in CODEC_NAMES else dtype) for name, shape in SMALL.items()}


def write(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    (folder / "speech_tokenizer").mkdir(parents=True)
    save_file({n: t for n, t in tensors.items() if n not in CODEC_NAMES}, folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n in CODEC_NAMES}, folder / "speech_tokenizer" / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def shard(folder: Path) -> dict[str, str]:
    """Split folder/model.safetensors into one shard a tensor; returns the weight map."""
    tensors = load_file(folder / "model.safetensors")
    weight_map = {name: f"model-{i + 1:05}-of-{len(tensors):05}.safetensors" for i, name in enumerate(tensors)}
    for name, file in weight_map.items():
        save_file({name: tensors[name]}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / published.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def tree(talker: Any) -> dict[str, Any]:
    def leaves(part: str, dtype: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), SMALL_TREE[part])

    return {"talker": leaves("talker", talker), "codec": leaves("codec", jnp.float32)}


def same(a: Any, b: Any) -> bool:
    left, right = flatten(a), flatten(b)
    return left.keys() == right.keys() and all(
        left[path].dtype == right[path].dtype and np.asarray(left[path]).tobytes() == np.asarray(right[path]).tobytes() for path in left
    )


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
def test_values_and_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Any, wanted: Any) -> None:
    monkeypatch.setattr(published, "_CHUNK", 20)  # several reads per tensor, the last one shorter
    tensors = values(stored)
    seen: list[tuple[str, int]] = []
    params = load_published(write(tmp_path / "c", tensors), tree(wanted), progress=lambda path, size: seen.append((path, size)))
    head = params["talker"]["codec_head"]["weight"]
    assert head.dtype == wanted
    np.testing.assert_array_equal(head, tensors["talker.codec_head.weight"].astype(wanted))
    tables = params["talker"]["code_predictor"]["model"]["codec_embedding"]["weight"]
    np.testing.assert_array_equal(tables, np.stack([tensors[f"{TABLES}.{i}.weight"] for i in range(2)]).astype(wanted))
    books = params["codec"]["encoder"]["quantizer"]["acoustic_residual_vector_quantizer"]["embed_sum"]
    assert books.dtype == jnp.float32
    np.testing.assert_array_equal(books[0], tensors[CODEC_NAMES[0]])
    assert seen == [(path, array.nbytes) for path, array in flatten(params).items()]


def test_cpu_arrays_are_not_copied_and_outlive_their_source() -> None:
    array = published.aligned_empty((1000, 100), np.dtype(np.float32))
    array[:] = np.arange(100)
    address = array.ctypes.data
    on_device = jax.device_put(array, jax.devices("cpu")[0])
    assert on_device.unsafe_buffer_pointer() == address  # the peak of loading rests on this
    del array
    gc.collect()
    others = [published.aligned_empty((1000, 100), np.dtype(np.float32)) for _ in range(20)]
    for other in others:
        other[:] = -1
    assert address not in {other.ctypes.data for other in others}
    np.testing.assert_array_equal(on_device, np.tile(np.arange(100, dtype=np.float32), (1000, 1)))


def test_sharded_equals_single(tmp_path: Path) -> None:
    single = load_published(write(tmp_path / "a", values()), tree(jnp.float32))
    write(tmp_path / "b", values())
    shard(tmp_path / "b")
    shard(tmp_path / "b" / "speech_tokenizer")
    assert same(single, load_published(tmp_path / "b", tree(jnp.float32)))


def test_write_is_the_inverse(tmp_path: Path) -> None:
    source = write(tmp_path / "a", values(ml_dtypes.bfloat16))
    (source / "merges.txt").write_text("m")
    params = load_published(source, tree(jnp.float32))
    write_published(tmp_path / "b", params, source, config={"new": 1}, dtype=jnp.bfloat16)
    for part in (".", "speech_tokenizer"):
        before, after = (load_file(folder / part / "model.safetensors") for folder in (source, tmp_path / "b"))
        assert before.keys() == after.keys()  # the ignored ones are passed through
        assert all(before[name].dtype == after[name].dtype and before[name].tobytes() == after[name].tobytes() for name in before)
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == {"new": 1}
    assert (tmp_path / "b" / "merges.txt").read_text() == "m"
    changed = jax.tree.map(lambda array: array + 1, params)
    write_published(tmp_path / "c", changed, source)
    assert same(changed, load_published(tmp_path / "c", tree(jnp.float32)))


def test_write_without_the_speaker_encoder(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "a", "base")
    config, codec = read(ModelConfig, source / "config.json"), read(CodecConfig, source / "speech_tokenizer" / "config.json")
    params = load_published(source, abstract(config, codec)[1])
    del params["speaker_encoder"]
    write_published(tmp_path / "b", params, source)
    names = load_file(tmp_path / "b" / "model.safetensors").keys()
    assert names
    assert all(name.startswith("talker.") for name in names)


def test_tensors_that_nothing_reads_may_be_of_any_type(tmp_path: Path) -> None:
    """Flags as bool, positions as int64, an inverse frequency that the index does not list."""
    unread = {
        "encoder.quantizer.acoustic_residual_vector_quantizer.layers.0.codebook.initialized": np.ones(1, bool),
        "talker.model.position_ids": np.arange(4),
        "talker.model.rotary_emb.original_inv_freq": np.ones(2, np.float32),
    }
    folder = write(tmp_path / "a", values() | unread)
    expected = load_published(write(tmp_path / "plain", values()), tree(jnp.float32))
    assert same(load_published(folder, tree(jnp.float32)), expected)
    weight_map = shard(folder)
    del weight_map["talker.model.rotary_emb.original_inv_freq"]
    (folder / published.INDEX).write_text(json.dumps({"weight_map": weight_map}), "utf-8-sig")
    assert same(load_published(folder, tree(jnp.float32)), expected)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tensors = values()
    for number, (kind, changed) in enumerate(
        [
            (UnmatchedTensor, tensors | {"talker.extra": np.zeros(1, np.float32)}),
            (UnfilledTensor, {name: tensor for name, tensor in tensors.items() if name != f"{TABLES}.1.weight"}),
            (MisshapedTensor, tensors | {"talker.codec_head.weight": np.zeros((3, 5), np.float32)}),
        ]
    ):
        with pytest.raises(kind):
            load_published(write(tmp_path / str(number), changed), tree(jnp.float32))


def test_a_name_in_two_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", values())
    weight_map = shard(folder)
    files = sorted(set(weight_map.values()))
    save_file(load_file(folder / files[0]) | load_file(folder / files[1]), folder / files[1])
    with pytest.raises(DuplicateTensor, match=rf"duplicate tensor .*{files[0]}.*{files[1]}"):
        published.scan(folder)


def test_index_and_shards_that_disagree(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", values())
    weight_map = shard(folder)
    first, second = list(weight_map)[:2]
    index = folder / published.INDEX

    index.write_text(json.dumps({"weight_map": weight_map | {"talker.more": weight_map[first]}}))
    with pytest.raises(DamagedFile, match=rf"'talker\.more' in '{weight_map[first]}', found in no shard"):
        published.scan(folder)
    index.write_text(json.dumps({"weight_map": weight_map | {first: weight_map[second], second: weight_map[first]}}))
    with pytest.raises(DamagedFile, match=f"expects tensor '{first}' in '{weight_map[second]}', it is in '{weight_map[first]}'"):
        published.scan(folder)
    save_file(load_file(folder / weight_map[first]) | {"talker.more": np.zeros(1, np.float32)}, folder / weight_map[first])
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(DamagedFile, match=r"holds tensor 'talker\.more', which .* does not list"):
        published.scan(folder)
    (folder / weight_map[first]).unlink()
    with pytest.raises(DamagedFile, match=f"names the shard '{weight_map[first]}' .for '{first}'.*not there"):
        published.scan(folder)
    index.write_text("{")
    with pytest.raises(DamagedFile, match="is not an index"):
        published.scan(folder)


def test_files_that_are_missing_cut_short_or_quantized(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", values())
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DamagedFile, match="not a whole safetensors file"):
        published.scan(folder)
    save_file({"talker.codec_head.weight": np.zeros((5, 3), np.int8)}, file)
    with pytest.raises(DamagedFile, match=r"'talker\.codec_head\.weight' has dtype I8, expected one of F32, BF16, F16"):
        published.scan(folder)
    file.unlink()
    with pytest.raises(DamagedFile, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        published.scan(folder)
