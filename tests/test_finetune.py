"""Fine-tuning: the clips are read as they should be, losses fall, adapters leave the base alone and merge into what they computed, a run
goes on exactly, and what is exported speaks in the speaker's name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from qwen3_jax import Qwen3TTS, Sampling
from qwen3_jax.audio.samples import write_wav
from qwen3_jax.checkpoint.mapping import flatten
from qwen3_jax.finetune import clips, command, loop, lora, teacher_forcing
from qwen3_jax.model.layers import Linear
from qwen3_jax.model.model import Model
from qwen3_jax.text.prompt import build
from qwen3_jax.text.tokenizer import Tokenizer
from tests.unoptimised import unoptimised

STEPS = 4
TEXTS = {"a": "Good evening.", "b": "Sit down.", "c": "We begin now."}
GREEDY = Sampling(do_sample=False, subtalker_dosample=False)
OPTIONS: dict[str, Any] = {"batch": 1, "accumulate": 2, "rate": 1e-2, "held_out": 1, "evaluate_every": 2}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0)
    for number, (name, text) in enumerate(TEXTS.items()):
        write_wav(folder / f"{name}.wav", noise.normal(0, 0.1, 25000 + 2000 * number).astype(np.float32))
        (folder / f"{name}.txt").write_text(text + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def base(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("base")


class Runs(dict[str, Path]):
    """A run of everything, and one of adapters; each is made when it is first asked for."""

    def __init__(self, base: Path, recordings: Path, folder: Path) -> None:
        super().__init__()
        self.base, self.recordings, self.folder = base, recordings, folder

    def __missing__(self, name: str) -> Path:
        before, programs = command.identity(self.base), command.train_step._cache_size()
        with unoptimised():
            command.run_command(
                str(self.base), self.recordings, self.folder / name, lora_rank={"full": None, "lora": 4}[name], steps=STEPS, **OPTIONS
            )
        assert command.train_step._cache_size() == programs + 1  # clips of like length share one
        assert command.identity(self.base) == before
        self[name] = self.folder / name
        return self[name]


@pytest.fixture(scope="module")
def runs(base: Path, recordings: Path, model: Callable[[str], Model], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    found = clips.find(recordings)
    clips.encode(model("base"), Tokenizer.from_folder(base, model("base").config), found)  # compiled here as other tests know it
    return Runs(base, recordings, tmp_path_factory.mktemp("runs"))


class Exports(dict[str, Path]):
    """What is exported of these runs."""

    def __init__(self, runs: Runs, folder: Path) -> None:
        super().__init__()
        self.runs, self.folder = runs, folder

    def __missing__(self, name: str) -> Path:
        command.export_command(str(self.runs.base), self.runs[name], self.folder / name, name=" Ann ")
        self[name] = self.folder / name
        return self[name]


@pytest.fixture(scope="module")
def exported(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(runs, tmp_path_factory.mktemp("exported"))


BOTH = pytest.mark.parametrize("name", [pytest.param("full", marks=pytest.mark.slow), "lora"])


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def arrays(run: Path, model: Model, rank: int) -> dict[str, np.ndarray]:
    shapes = jax.eval_shape(lambda talker: command.start(talker, rank, 0), model.params["talker"])
    return {name: np.asarray(leaf) for name, leaf in loop.named(loop.resume(run, shapes)).items()}


# runs


@BOTH
def test_the_loss_falls(runs: Runs, name: str) -> None:
    entries = log(runs[name])
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert entries[-1]["loss"] < entries[0]["loss"] - 0.2
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["book_0"] + 0.3 * entry["books_1_15"], abs=1e-4)
    assert "held_out_loss" in entries[1] and "held_out_loss" in entries[3]
    assert (runs[name] / "loss.png").is_file()


def test_a_run_that_was_stopped_ends_the_same(
    base: Path, recordings: Path, runs: Runs, tmp_path: Path, model: Callable[[str], Model]
) -> None:
    for steps in (1, STEPS):
        command.run_command(str(base), recordings, tmp_path / "run", lora_rank=4, steps=steps, **OPTIONS)
    whole, parts = (arrays(run, model("base"), 4) for run in (runs["lora"], tmp_path / "run"))
    assert whole.keys() == parts.keys()
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_adapters_alone_are_trained(runs: Runs, model: Callable[[str], Model]) -> None:
    state = arrays(runs["lora"], model("base"), 4)
    trained = [name.split("/", 1)[1] for name in state if name.startswith("trained/")]
    projections = 7 * (3 + 2)  # of the tiny talker's layers and the predictor's
    assert len(trained) == 2 * projections and all(name.endswith(("/a", "/b")) for name in trained)
    assert sum(name.startswith("moments/") for name in state) == 1 + 2 * len(trained)
    assert all(np.abs(state[f"trained/{name}"]).max() > 0 for name in trained)


def test_a_merge_computes_what_base_and_adapters_do(base: Path, runs: Runs, model: Callable[[str], Model]) -> None:
    loaded = model("base")
    shapes = jax.eval_shape(lambda talker: command.start(talker, 4, 0), loaded.params["talker"])
    adapters = loop.resume(runs["lora"], shapes)["trained"]

    class Adapted(nnx.Module):
        def __init__(self, inner: Linear, pair: dict[str, Any]) -> None:
            self.inner, self.a, self.b = inner, nnx.Param(pair["a"]), nnx.Param(pair["b"])

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.inner(x) + lora.SCALE * ((x @ self.a[...].T) @ self.b[...].T)

    talker = nnx.merge(loaded.graphs.talker, loaded.params["talker"])
    for path, pair in adapters.items():
        *way, last, _ = path.split(".")
        place: Any = talker
        for name in way:
            place = place[int(name)] if name.isdigit() else getattr(place, name)
        setattr(place, last, Adapted(getattr(place, last), pair))
    made = command.taught(loaded.config, clips.load(runs["lora"] / command.SPEECH))
    batch = jax.tree.map(jnp.asarray, command.assembled([made[:1]])[0])
    graph, params = nnx.split(talker)
    side = jax.jit(lambda params: teacher_forcing.scores(nnx.merge(graph, params), batch)[:2])(params)
    merged = lora.merge(loaded.params["talker"], adapters)
    one = jax.jit(lambda params: teacher_forcing.scores(nnx.merge(loaded.graphs.talker, params), batch)[:2])
    for ours, theirs, untuned in zip(one(merged), side, one(loaded.params["talker"]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        assert np.abs(ours - untuned).max() > 0.1  # the adapters do something


# what is exported


@BOTH
def test_an_export_has_the_published_layout(base: Path, exported: Exports, runs: Runs, name: str) -> None:
    before = load_file(base / "model.safetensors")
    adapted = {name for name in before if lora.ADAPTED.fullmatch(name.removeprefix("talker."))}
    folder = exported[name]
    config = json.loads((folder / "config.json").read_text())
    was = json.loads((base / "config.json").read_text())
    assert config["talker_config"].pop("spk_id") == {"ann": 3000} and config["talker_config"].pop("spk_is_dialect") == {"ann": False}
    assert config.pop("tts_model_type") == "custom_voice"
    was.pop("tts_model_type")
    del was["talker_config"]["spk_id"], was["talker_config"]["spk_is_dialect"]
    assert config == was
    after = load_file(folder / "model.safetensors")
    assert after.keys() == {tensor for tensor in before if not tensor.startswith("speaker_encoder.")}
    assert all(after[tensor].dtype == before[tensor].dtype for tensor in after)
    table = "talker.model.codec_embedding.weight"
    np.testing.assert_array_equal(after[table][3000], clips.load(runs[name] / command.SPEECH).x_vector)
    changed = {tensor for tensor in after if not np.array_equal(after[tensor], before[tensor])}
    assert changed == adapted | {table} if name == "lora" else changed > adapted | {table}
    if name == "lora":
        assert np.array_equal(np.delete(after[table], 3000, 0), np.delete(before[table], 3000, 0))
    codec = "speech_tokenizer/model.safetensors"
    assert load_file(folder / codec).keys() == load_file(base / codec).keys()


def test_an_export_speaks(exported: Exports, runs: Runs, model: Callable[[str], Model]) -> None:
    """Through the preset speaker's row it hears what the Base prompt with that x-vector says, as it was trained."""
    tts = Qwen3TTS.from_pretrained(exported["lora"])
    assert tts.speakers == ("ann",)
    speech = tts.generate("Good.", voice="Ann", sampling=GREEDY, max_frames=4)
    assert len(speech.pcm) == 1920 * len(speech.frames) > 0
    loaded = model("base")
    ids = tts.prompts.reader("Good.", "text").assistant("Good.")
    given = clips.load(runs["lora"] / command.SPEECH)
    prompts = (
        build(tts.model.config, ids, speaker="ann", streaming_text=False),
        build(loaded.config, ids, x_vector=given.x_vector, streaming_text=False),
    )
    talker = nnx.merge(tts.model.graphs.talker, tts.model.params["talker"])
    rows = [
        talker.text_rows(jnp.asarray(prompt.text[None]))
        + talker.code_rows(jnp.asarray(prompt.codes[None]))
        + jnp.where(prompt.speaker[None, :, None], given.x_vector, 0)
        for prompt in prompts
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)


# data


def test_clips_come_in_passes(model: Callable[[str], Model], runs: Runs) -> None:
    made = command.taught(model("base").config, clips.load(runs["lora"] / command.SPEECH))
    at = command.batches(made, batch=1, accumulate=3, seed=1)
    for step in (0, 1, 7):
        batch = at(step)
        assert batch.labels.shape[:3] == (3, 1, 64)
        assert sorted(batch.rows.length[:, 0].tolist()) == sorted(len(one.labels) for one in made)
        for labels, picks in zip(batch.labels, batch.picks, strict=True):
            whole = labels.reshape(-1, 16)[np.asarray(picks), -1] >= 0
            assert sorted(np.asarray(picks)[whole]) == np.flatnonzero(labels.reshape(-1, 16)[:, -1] >= 0).tolist()
        assert all(np.array_equal(one, two) for one, two in zip(jax.tree.leaves(batch), jax.tree.leaves(at(step)), strict=True))


def test_tables_of_transcripts(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    for name in TEXTS:
        (tmp_path / "wavs" / f"{name}.wav").write_bytes((recordings / f"{name}.wav").read_bytes())
    table = tmp_path / clips.TABLE
    table.write_text("\n".join(f"{name}|Mr. X|{text}" for name, text in TEXTS.items()), "utf-8")
    assert [(clip.path.stem, clip.text) for clip in clips.find(tmp_path)] == list(TEXTS.items())
    table.write_text('file_name,text\nwavs/a.wav,"Well, well."\n', "utf-8")
    assert clips.find(tmp_path) == [clips.TranscribedClip(tmp_path / "wavs" / "a.wav", "Well, well.")]
    for text, message in (("a|\n", "a.wav.*is empty"), ("x|Hm.\n", "names 'x'"), ("path,words\n", "starts with 'path,words'")):
        table.write_text(text, "utf-8")
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            clips.find(tmp_path)


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 0}, "--lora 0: must be 1 or more"),
        ({"lora_rank": 500}, "lora rank 500: must be from 1 to 31"),
        ({"steps": 0}, "--steps 0"),
        ({"rate": float("nan")}, "--rate nan"),
        ({"held_out": 3}, "held-out 3: must be from 0 to 2"),
        ({"dtype": "float16"}, "--dtype float16"),
        ({"dtype": "int8"}, "--dtype int8: must be float32 or bfloat16; train first, and convert to int8"),
    ],
)
def test_options_that_make_no_sense(base: Path, recordings: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command.run_command(str(base), recordings, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_clips_that_cannot_be_used(base: Path, recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        command.run_command(str(base), tmp_path / "none", tmp_path / "run")
    folder = tmp_path / "clips"
    folder.mkdir()
    with pytest.raises(ValueError, match="has no clips"):
        command.run_command(str(base), folder, tmp_path / "run")
    write_wav(folder / "a.wav", np.zeros(30000, np.float32))
    with pytest.raises(FileNotFoundError, match="no transcript for a.wav; write a.txt"):
        command.run_command(str(base), folder, tmp_path / "run")
    (folder / "a.txt").write_text("Hm.", "utf-8")
    with pytest.raises(ValueError, match=r"a\.wav: audio is silent"):
        command.run_command(str(base), folder, tmp_path / "run")


def test_a_run_goes_on_with_what_it_was_begun_with(
    base: Path, recordings: Path, runs: Runs, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="was begun with lora 4, now it is 0"):
        command.run_command(str(base), recordings, runs["lora"], steps=STEPS, **OPTIONS)
    with pytest.raises(ValueError, match="only a Base one has the speaker encoder"):
        command.run_command(str(checkpoint("custom_voice")), recordings, tmp_path / "run")
    with pytest.raises(ValueError, match="has no checkpoints"):
        command.export_command(str(base), tmp_path, tmp_path / "out", name="ann")
    with pytest.raises(ValueError, match="--name is empty"):
        command.export_command(str(base), runs["lora"], tmp_path / "out", name=" ")
    other = tmp_path / "other"
    other.mkdir()
    (other / command.SETTINGS).write_text((runs["lora"] / command.SETTINGS).read_text().replace('"checkpoint": "', '"checkpoint": "0'))
    (other / "checkpoints").symlink_to(runs["lora"] / "checkpoints")
    with pytest.raises(ValueError, match="begun from another checkpoint"):
        command.export_command(str(base), other, tmp_path / "out", name="ann")
    assert not (tmp_path / "out").exists()


def test_every_projection_is_adapted(model: Callable[[str], Model]) -> None:
    paths = {path for path in flatten(model("base").params["talker"]) if lora.ADAPTED.fullmatch(path)}
    assert {path.split(".")[-2] for path in paths} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
