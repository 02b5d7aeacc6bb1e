"""The chatterbox engine on small ONNX graphs of the published inputs and outputs, made here, whose results can be worked out by hand.

The language model looks at the last token only: text ends in a full stop (id 3), which is followed by 100, 101, 102 and STOP. The decoder
makes of each token 960 samples of its number times the speaker's embedding, so that the wave tells tokens and voice.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from server.engines import chatterbox
from server.engines.chatterbox import PENALTY, SILENCE, START, STOP, choose
from server.engines.factory import create
from server.settings import Settings
from server.voices.store import VoiceStore
from tests.fake_engine import LIMIT
from tests.serving import client, hear, prompts_of, running, say, utterance

onnx = pytest.importorskip("onnx", reason="makes the graphs")
pytest.importorskip("onnxruntime", reason="the extra chatterbox")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

HIDDEN, VOCABULARY = 8, STOP + 1
SPOKEN = [100, 101, 102]
PER_TOKEN = 960


def part(
    folder: Path, name: str, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], constants: dict[str, np.ndarray]
) -> None:
    """Write one graph; inputs and outputs are name -> (type, shape)."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(one, *kind) for one, kind in inputs.items()],
        [helper.make_tensor_value_info(one, *kind) for one, kind in outputs.items()],
        [numpy_helper.from_array(value, one) for one, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / f"{name}.onnx")


@pytest.fixture(params=[TensorProto.FLOAT, TensorProto.FLOAT16], ids=["float32", "float16"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model; the cache is of either type, as in the published variants."""
    place = tmp_path / "model"
    (place / "onnx").mkdir(parents=True)
    node, real, whole = helper.make_node, TensorProto.FLOAT, TensorProto.INT64
    part(
        place / "onnx",
        "speech_encoder",
        [
            node("Identity", ["prefix"], ["audio_features"]),
            node("Identity", ["prompt"], ["audio_tokens"]),
            node("ReduceMax", ["audio_values"], ["speaker_embeddings"], axes=[1], keepdims=1),
            node("Identity", ["prefix"], ["speaker_features"]),
        ],
        {"audio_values": (real, [1, "samples"])},
        {
            "audio_features": (real, [1, 2, HIDDEN]),
            "audio_tokens": (whole, [1, 1]),
            "speaker_embeddings": (real, [1, 1]),
            "speaker_features": (real, [1, 2, HIDDEN]),
        },
        {"prefix": np.zeros((1, 2, HIDDEN), np.float32), "prompt": np.array([[7]], np.int64)},
    )
    table, logits = np.zeros((VOCABULARY, HIDDEN), np.float32), np.zeros((HIDDEN, VOCABULARY), np.float32)
    for row, (token, following) in enumerate(zip([3, *SPOKEN], [*SPOKEN, STOP], strict=True)):
        table[token, row] = 1
        logits[row, following] = 5
    part(
        place / "onnx",
        "embed_tokens",
        [node("Gather", ["table", "input_ids"], ["inputs_embeds"])],
        {"input_ids": (whole, [1, "tokens"])},
        {"inputs_embeds": (real, [1, "tokens", HIDDEN])},
        {"table": table},
    )
    cache = request.param
    part(
        place / "onnx",
        "language_model",
        [
            node("MatMul", ["inputs_embeds", "head"], ["logits"]),
            node("Unsqueeze", ["inputs_embeds", "one"], ["wide"]),
            node("Slice", ["wide", "zero", "four", "three"], ["narrow"]),
            node("Cast", ["narrow"], ["new"], to=cache),
            node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
            node("Concat", ["past_key_values.0.value", "new"], ["present.0.value"], axis=2),
        ],
        {
            "inputs_embeds": (real, [1, "rows", HIDDEN]),
            "attention_mask": (whole, [1, "all"]),
            "position_ids": (whole, [1, "rows"]),
            "past_key_values.0.key": (cache, [1, 1, "past", 4]),
            "past_key_values.0.value": (cache, [1, 1, "past", 4]),
        },
        {
            "logits": (real, [1, "rows", VOCABULARY]),
            "present.0.key": (cache, [1, 1, "all", 4]),
            "present.0.value": (cache, [1, 1, "all", 4]),
        },
        {"head": logits, "one": np.array([1]), "zero": np.array([0]), "four": np.array([4]), "three": np.array([3])},
    )
    part(
        place / "onnx",
        "conditional_decoder",
        [
            node("Cast", ["speech_tokens"], ["number"], to=real),
            node("Unsqueeze", ["number", "two"], ["column"]),
            node("Expand", ["column", "frame"], ["wide"]),
            node("Reshape", ["wide", "flat"], ["row"]),
            node("Mul", ["row", "speaker_embeddings"], ["louder"]),
            node("Div", ["louder", "scale"], ["wav"]),
        ],
        {"speech_tokens": (whole, [1, "tokens"]), "speaker_embeddings": (real, [1, 1]), "speaker_features": (real, [1, 2, HIDDEN])},
        {"wav": (real, [1, "samples"])},
        {
            "two": np.array([2]),
            "frame": np.array([1, 1, PER_TOKEN]),
            "flat": np.array([1, -1]),
            "scale": np.array(10_000, np.float32),
        },
    )
    tokenizer = Tokenizer(models.WordLevel({"hello": 1, "there": 2, ".": 3, "?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(place / "tokenizer.json"))
    return place


def expected(loudness: float) -> np.ndarray:
    """By hand: the prompt's token, what was spoken, three silences."""
    return np.repeat(np.array([7, *SPOKEN, *[SILENCE] * 3]) * loudness / 10_000, PER_TOKEN).astype(np.float32)


async def test_a_text_becomes_one_piece(folder: Path, voices: Path) -> None:
    chosen = Settings(engine="chatterbox", model_id=str(folder), voices_dir=voices)
    store = VoiceStore(voices)
    engine = create(chosen, store)
    async with asyncio.timeout(3 * LIMIT):
        await engine.load()
        assert (engine.languages, engine.streaming, engine.presets) == (("English",), False, None)
        model = engine._model
        speaker = model.clone(store.reference(store.voices["anna"]), None, "anna")
        loudness = float(speaker.embedding[0, 0])
        assert 0.3 < loudness < 0.6, "the loudest sample of the recording"
        again = model.from_bytes(model.to_bytes(speaker))
        assert all(np.array_equal(one, other) for one, other in zip(speaker, again, strict=True))
        from server.engines.base import SpeechRequest

        handle = engine.submit(SpeechRequest(text="hello there .", voice=store.voices["anna"], language="English"))
        [piece] = [piece async for piece in handle]
        np.testing.assert_allclose(piece, expected(loudness), rtol=1e-6)
        assert handle.finish_reason == "eos"
        assert len(prompts_of(voices)) == 2, "the warm voice's as well"
    engine.close()


async def test_the_same_protocol_and_the_same_voices(folder: Path, voices: Path) -> None:
    async with running(voices, create, engine="chatterbox", model_id=str(folder)) as server, client(server.url) as connection:
        await say(connection, type="start", language="German")
        assert (await hear(connection))["message"].startswith("language 'German': this model speaks English")
        await say(connection, type="speak", text="hello .", voice="anna")
        heard, complete = await utterance(connection)
        assert (len(heard), complete["finishReason"]) == (2 * 7 * PER_TOKEN, "eos")


def test_long_texts_are_spoken_in_passes(folder: Path) -> None:
    model = chatterbox.ChatterboxSynthesiser(folder, ["CPUExecutionProvider"])
    passes = model.split_for_passes("hello there. " * 60)
    assert "".join(passes) == "hello there. " * 60
    assert len(passes) == 3
    assert all(len(one) <= chatterbox.MAX_CHARACTERS for one in passes)


@pytest.mark.parametrize("text", ["\u201c" * 4000, "今。" * 2000, "word " * 800, "One. Two. " * 400, "x" * 4000, " " * 4000])
def test_sentences_are_looked_for_in_short_windows(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    looked, segment = [], chatterbox.sentencex.segment

    def counted(language: str, text: str) -> Any:
        looked.append(len(text))
        return segment(language, text)

    monkeypatch.setattr(chatterbox.sentencex, "segment", counted)
    model = chatterbox.ChatterboxSynthesiser(folder, ["CPUExecutionProvider"])
    assert "".join(model.split(text)) == text
    assert max(looked) <= chatterbox.WINDOW and sum(looked) <= 2 * len(text) + chatterbox.WINDOW


def test_a_missing_part_is_named(folder: Path) -> None:
    (folder / "onnx" / "language_model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="language_model"):
        chatterbox.load(Settings(engine="chatterbox", model_id=str(folder)), None)


def test_a_model_that_is_nowhere_is_told_by_its_own_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"TTS_ENGINE=chatterbox: .*none is no folder here.*onnx/speech_encoder.onnx.*TTS_MODEL_ID"):
        chatterbox.load(Settings(engine="chatterbox", model_id=str(tmp_path / "none")), None)


def test_tokens_are_chosen_as_published_or_drawn() -> None:
    draw = np.random.default_rng(0)
    logits = np.array([1.0, 1.1, -1.0])
    assert choose(logits, [START % 3], {}, draw) == 1
    assert choose(logits, [1], {}, draw) == 0, "1.1 / 1.2 < 1"
    assert choose(np.array([-1.0, -1.1]), [0], {}, draw) == 1, "a negative one is multiplied"
    assert PENALTY == 1.2
    assert {choose(np.log([0.5, 0.3, 0.2]), [], {"temperature": 0.0}, draw) for _ in range(50)} == {0}
    drawn = [choose(np.log([0.5, 0.3, 0.2]), [], {"temperature": 1.0}, draw) for _ in range(2000)]
    np.testing.assert_allclose(np.bincount(drawn) / 2000, [0.5, 0.3, 0.2], atol=0.04)
    assert {choose(np.log([0.5, 0.3, 0.2]), [], {"temperature": 1.0, "top_p": 0.6}, draw) for _ in range(200)} == {0, 1}
    assert {choose(np.log([0.5, 0.3, 0.2]), [], {"temperature": 1.0, "top_k": 1}, draw) for _ in range(50)} == {0}
