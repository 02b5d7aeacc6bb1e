"""Weight-only int8: its rounding, its product, its way through files, and every entry point that takes it."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.__main__ import convert
from convert.verify import verify
from qwen3_jax import Qwen3TTS, Voice, cli
from qwen3_jax.checkpoint import converted, published
from qwen3_jax.checkpoint.int8 import LARGEST, UnroundableTensor, quantise
from qwen3_jax.checkpoint.mapping import flatten
from qwen3_jax.checkpoint.table import ALIGNMENT, TABLE
from qwen3_jax.engine.plan import plan
from qwen3_jax.model.encode import encode_codes, encode_x_vector
from qwen3_jax.model.int8 import as_int8, int8_matmul
from qwen3_jax.model.model import load
from qwen3_jax.service import SpeechService
from qwen3_jax.testing import write_checkpoint
from server.settings import Settings
from tests.test_layers import temporaries
from tests.test_published import same
from tests.test_tts import TEXT, WAVE

INT8 = jnp.dtype(jnp.int8)
MATRIX = "talker.model.layers.1.self_attn.q_proj.weight"
FRAMES = 5


def rounded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    into, scale = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    quantise(weight, into, scale, "w")
    return into, scale


def matrix(outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((outputs, inputs)).astype(np.float32)


def test_a_weight_is_at_most_half_a_step_off() -> None:
    weight = matrix(40, 96) * np.logspace(-30, 30, 40, dtype=np.float32)[:, None]
    weight[7], weight[8] = 0, 1e-45  # the scale of the latter underflows
    into, scale = rounded(weight)
    assert (np.abs(into[:7]).max(axis=1) == LARGEST).all()
    error = np.abs(into * scale[:, None].astype(np.float64) - weight)
    assert (error <= scale[:, None] * 0.501 + 1e-44).all()
    assert not into[7].any() and not (into[7] * scale[7]).any()


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_every_piece_of_a_large_matrix_is_rounded(monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    weight = matrix(50, 64).astype(dtype)
    whole = rounded(weight)
    monkeypatch.setattr("qwen3_jax.checkpoint.int8._PIECE", 7 * 64)
    for found, expected in zip(rounded(weight), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (16, 1), (1, 17), (2, 40)])
def test_the_product_is_that_of_the_rounded_weights(shape: tuple[int, int]) -> None:
    into, scale = rounded(matrix(24, 64))
    x = matrix(shape[0] * shape[1], 64, 1).reshape(*shape, 64)
    found = jax.jit(int8_matmul)(x, into, scale)
    assert found.dtype == jnp.float32 and found.shape == (*shape, 24)
    np.testing.assert_allclose(found, x.astype(np.float64) @ (into * scale[:, None].astype(np.float64)).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [3, 40])
def test_a_row_that_is_not_finite_leaves_the_others_alone(rows: int, value: float) -> None:
    into, scale = rounded(matrix(24, 64))
    x = matrix(rows, 64, 1)
    damaged = x.copy()
    damaged[0, 3] = value
    found, whole = (np.asarray(jax.jit(int8_matmul)(given, into, scale)) for given in (damaged, x))
    np.testing.assert_array_equal(found[1:], whole[1:])
    assert not np.isfinite(found[0]).any()


@pytest.mark.parametrize("rows", [1, 4, 40])
def test_no_weight_is_widened_in_memory(rows: int) -> None:
    """Of many rows one at a time, of a few rows none."""
    size = 256
    weights = [rounded(matrix(size, size, seed))[0] for seed in range(12)]
    scale = jnp.full(size, 1e-3)

    def loop(x: jax.Array, *weights: jax.Array) -> jax.Array:
        def chain(_: int, x: jax.Array) -> jax.Array:
            return functools.reduce(lambda x, weight: int8_matmul(x, weight, scale), weights, x)

        return jax.lax.fori_loop(0, jnp.max(x).astype(jnp.int32), chain, x)

    wide = 4 * size * size
    assert temporaries(loop, jnp.ones((rows, size)), *weights) < (4 * wide if rows > 16 else wide)


def edited(folder: Path, destination: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    shutil.copytree(folder, destination)
    tensors = load_file(destination / "model.safetensors")
    change(tensors)
    save_file(tensors, destination / "model.safetensors", {"format": "pt"})
    return destination


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, checkpoint: Callable[[str], Path], value: float) -> None:
    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[MATRIX][5, 2] = value

    folder = edited(checkpoint("base"), tmp_path / "damaged", damage)
    for act in (lambda: load(folder, stored=INT8), lambda: convert(str(folder), tmp_path / "c", "int8")):
        with pytest.raises(UnroundableTensor, match=rf"{MATRIX}' has NaN or infinity in row 5"):
            act()
    convert(str(folder), tmp_path / "wide")
    with pytest.raises(UnroundableTensor, match=MATRIX):
        load(tmp_path / "wide", stored=INT8)


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted to int8."""
    made = tmp_path_factory.mktemp("int8") / "converted"
    convert(str(checkpoint("base")), made, "int8")
    return made


@pytest.fixture(scope="module")
def tts(checkpoint: Callable[[str], Path]) -> Qwen3TTS:
    return Qwen3TTS.from_pretrained(checkpoint("base"), device="cpu", dtype="int8")


@pytest.fixture(scope="module")
def voice(tts: Qwen3TTS) -> Voice:
    return tts.create_voice((WAVE, 24000), "What was said.", name="reference")


def test_matrices_are_int8_and_nothing_else_is(tts: Qwen3TTS, checkpoint: Callable[[str], Path]) -> None:
    flat = flatten(tts.model.params["talker"])
    wide = flatten(load(checkpoint("base")).params["talker"])
    int8 = {path for path, leaf in flat.items() if leaf.dtype == INT8}
    assert int8 == {path for path, leaf in wide.items() if leaf.ndim == 2 and "embedding" not in path}
    for path in int8:
        scale = flat[path.removesuffix("weight") + "scale"]
        assert scale.shape == flat[path].shape[:1] and scale.dtype == jnp.float32
        found = np.asarray(flat[path]) * np.asarray(scale)[:, None]
        np.testing.assert_allclose(found, wide[path].astype(jnp.float32), atol=float(scale.max()) * 0.51)


def test_converted_before_is_converted_while_loading(
    tmp_path: Path, checkpoint: Callable[[str], Path], folder: Path, tts: Qwen3TTS, voice: Voice
) -> None:
    arrays = converted.describe(folder)["arrays"]
    assert arrays[MATRIX][0] == "int8" and converted.identity(folder) != converted.identity(checkpoint("base"))
    convert(str(checkpoint("base")), tmp_path / "wide")
    expected = load(checkpoint("base"), stored=INT8)
    assert same(load(tmp_path / "wide", stored=INT8).params, expected.params)
    small = load(folder)
    text, rounded_text = (model.params["talker"]["model"].pop("text_embedding") for model in (expected, small))
    assert same(small.params, expected.params) and rounded_text["weight"].dtype == INT8  # on the disk; in memory it is not there anyway
    weight, scale = (np.asarray(rounded_text[name]) for name in ("weight", "scale"))
    np.testing.assert_array_equal(jax.jit(as_int8)(text["weight"]), weight * scale[:, None])
    kept = Qwen3TTS.from_pretrained(folder)  # as int8 by itself
    assert "int8" in repr(kept) and "int8" in repr(tts)
    frames = [each.generate(TEXT, voice=voice, seed=1, max_frames=FRAMES).frames for each in (kept, tts)]
    np.testing.assert_array_equal(*frames)


def test_shards_are_one_checkpoint(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    shutil.copytree(checkpoint("base"), tmp_path / "shards")
    whole = load_file(tmp_path / "shards" / "model.safetensors")
    (tmp_path / "shards" / "model.safetensors").unlink()
    names = sorted(whole)
    shards = {f"model-{number}-of-2.safetensors": names[number::2] for number in range(2)}
    for file, part in shards.items():
        save_file({name: whole[name] for name in part}, tmp_path / "shards" / file, {"format": "pt"})
    index = {name: file for file, part in shards.items() for name in part}
    (tmp_path / "shards" / published.INDEX).write_text(json.dumps({"weight_map": index}))
    assert same(load(tmp_path / "shards", stored=INT8).params, load(checkpoint("base"), stored=INT8).params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounded_weights_are_not_taken_for_exact_ones(folder: Path, dtype: str) -> None:
    for load_it in (Qwen3TTS.from_pretrained, functools.partial(SpeechService, slots=2)):
        with pytest.raises(ValueError, match=f"holds weights rounded to int8, and {dtype} was asked for: leave the dtype out"):
            load_it(folder, dtype=dtype)
    with pytest.raises(ValueError, match="rounded to int8, which differ too much: verify what it was converted from"):
        verify(folder, Path(__file__).parent / "golden" / "base.safetensors")


@pytest.mark.slow
def test_codes_are_the_same_alone_and_in_company(tts: Qwen3TTS, voice: Voice) -> None:
    texts = [TEXT, "Good morning.", "And so on.", "One more line."]
    alone = [tts.generate(text, voice=voice, seed=number, max_frames=FRAMES).frames for number, text in enumerate(texts)]
    for rows in (2, 4):
        together = tts.generate(texts[:rows], voice=voice, seed=list(range(rows)), max_frames=FRAMES)
        for found, expected in zip(together, alone, strict=False):
            np.testing.assert_array_equal(found.frames, expected)
    with SpeechService(tts, slots=3, columns=128, warm=False) as service:
        spoken = [service.speak(text, voice=voice, seed=number, max_frames=FRAMES) for number, text in enumerate(texts)]
        for utterance, expected in zip(spoken, alone, strict=True):
            list(utterance)
            np.testing.assert_array_equal(utterance.frames, expected)


def test_every_entry_point_takes_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTS_DTYPE", "int8")
    assert Settings().dtype == "int8"
    asked: list[object] = []
    monkeypatch.setattr("server.run.main", lambda **how: asked.append(how["dtype"]))

    def loaded(*_: object, **how: object) -> None:
        asked.append(how["dtype"])
        raise ValueError("far enough")

    monkeypatch.setattr(Qwen3TTS, "from_pretrained", loaded)
    for arguments in (["serve", "--dtype", "int8"], ["say", "Hello.", "-o", str(tmp_path / "x.wav"), "--dtype", "int8"]):
        monkeypatch.setattr("sys.argv", ["qwen3-jax", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
    assert asked == ["int8", "int8"]
    for model, dtype in ((folder, None), (checkpoint("base"), "int8")):
        rows = dict(cli.describe(str(model), dtype))
        assert rows["talker's matrices"].startswith("int8")
    assert dict(cli.describe(str(checkpoint("base")), None))["talker's matrices"] == "float32"
    for dtype in ("float32", "bfloat16"):  # as loading it does
        with pytest.raises(ValueError, match=f"holds weights rounded to int8, and {dtype} was asked for"):
            list(cli.describe(str(folder), dtype))
    monkeypatch.setattr("sys.argv", ["qwen3-jax", "info", "--model", str(checkpoint("base"))])  # TTS_DTYPE stands in for --dtype
    with pytest.raises(SystemExit):
        cli.main()
    assert "int8, a scale a row" in capsys.readouterr().out


# What an int8 model keeps in memory, and every model that `from_pretrained` loads.


def moved(source: Path, folder: Path, early: int) -> Path:
    """A copy whose text embedding lies so many bytes before a place that XLA takes an array from."""
    file = shutil.copytree(source, folder) / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    text = json.dumps(header).encode()
    text += b" " * ((early - 8 - len(text) - header[TABLE]["data_offsets"][0]) % ALIGNMENT)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


@pytest.mark.parametrize("early", [0, 8, 40])
def test_the_text_embedding_stays_in_its_file(tmp_path: Path, checkpoint: Callable[[str], Path], early: int) -> None:
    """Wherever in the file it lies."""
    whole, lean = load(checkpoint("base")), load(moved(checkpoint("base"), tmp_path / "c", early), lean=True)
    table, expected = (model.params["talker"]["model"]["text_embedding"]["weight"] for model in (lean, whole))
    assert table.ndim == 1 and table.size - expected.size == early // table.dtype.itemsize
    np.testing.assert_array_equal(table[-expected.size :].reshape(expected.shape), expected)
    planned = [sum(plan(model, 1, 64).weights.values()) for model in (lean, whole)]
    assert planned[1] - planned[0] == expected.nbytes


@pytest.mark.parametrize("early", [pytest.param(0, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow), 40])  # a program each
def test_wherever_the_text_embedding_lies_the_codes_are_the_same(tmp_path: Path, checkpoint: Callable[[str], Path], early: int) -> None:
    folders = moved(checkpoint("base"), tmp_path / "c", early), checkpoint("base")
    tts = [Qwen3TTS.from_pretrained(folder) for folder in folders]
    voice = tts[1].create_voice((WAVE, 24000))
    frames = [each.generate(TEXT, voice=voice, seed=1, max_frames=FRAMES).frames for each in tts]
    np.testing.assert_array_equal(*frames)


def test_what_only_cloning_needs_is_read_for_it(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", "base")
    tts = Qwen3TTS.from_pretrained(folder, dtype="int8")
    assert "encoder" not in tts.model.params["codec"] and "speaker_encoder" not in tts.model.params
    whole = load(folder, stored=INT8)
    voice = tts.create_voice((WAVE, 24000), "What was said.")
    np.testing.assert_array_equal(voice.x_vector, encode_x_vector(whole, WAVE))
    np.testing.assert_array_equal(voice.codes, encode_codes(whole, WAVE))
    assert "encoder" not in tts.model.params["codec"] and "speaker_encoder" not in tts.model.params  # nor kept
    table = whole.params["talker"]["model"]["text_embedding"]["weight"].nbytes  # which lies in its file in the other one
    assert plan(tts.model, 1, 64).weights["float32"] == plan(whole, 1, 64).weights["float32"] - table  # but the encoders are counted
    config = folder / "generation_config.json"
    before = config.read_text()
    config.write_text(before + " ")
    with pytest.raises(ValueError, match="was changed after the model was loaded, so it cannot clone voices: load it again"):
        tts.create_voice((WAVE, 24000))
    config.write_text(before)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="load it again"):
        tts.create_voice((WAVE, 24000))
    assert len(tts.generate(TEXT, voice=voice, seed=1, max_frames=2).frames)


def test_many_slots_widen_no_int8(checkpoint: Callable[[str], Path]) -> None:
    lean = load(checkpoint("base"), stored=INT8, lean=True)
    assert plan(lean, 1, 64).weights == plan(lean, 8, 64).weights
