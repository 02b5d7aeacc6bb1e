"""The public API on a tiny checkpoint: frozen names, streamed == whole, cloning, batches, and errors by name."""

import gc
import inspect
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import msgspec
import numpy as np
import pytest
import soundfile

import qwen3_jax
from qwen3_jax import Qwen3TTS, Sampling, Speech, Voice
from qwen3_jax.codec import init_state
from qwen3_jax.engine import JaxDevice
from qwen3_jax.model.decode import decode, prime
from qwen3_jax.model.model import Model
from qwen3_jax.speech.part import request_of
from qwen3_jax.text.split import split as split_text
from qwen3_jax.voices.choice import VoiceChoice
from qwen3_jax.voices.layers import VoiceLayers
from tests.alone import spoken

SECONDS = 4
WAVE = (0.1 * np.random.RandomState(0).standard_normal(24000 * SECONDS)).astype(np.float32)
TEXT = "Hello there."
LONG = "The first sentence goes on for a while, so that it fills a part of its own and a bit more. " * 3
FRAMES = 12  # enough for chunks of every size, few enough to be quick


@pytest.fixture(scope="module")
def tts(checkpoint: Callable[[str], Path]) -> Qwen3TTS:
    return Qwen3TTS.from_pretrained(checkpoint("base"), device="cpu")


@pytest.fixture(scope="module")
def voice(tts: Qwen3TTS) -> Voice:
    return tts.create_voice((WAVE, 24000))


@pytest.fixture(scope="module")
def icl_voice(tts: Qwen3TTS) -> Voice:
    return tts.create_voice((WAVE, 24000), "What was said.", name="reference")


def assert_same_sound(ours: np.ndarray, expected: np.ndarray) -> None:
    """float32 noise: 1e-4 of the wave's RMS, and no single sample ten times that."""
    assert ours.shape == expected.shape
    level = np.sqrt(np.mean(np.square(expected)))
    assert np.sqrt(np.mean(np.square(ours - expected))) < 1e-4 * level
    assert np.abs(ours - expected).max() < 1e-3 * level


def long(tts: Qwen3TTS, voice: Voice, text: str = TEXT, **more: Any) -> Speech:
    """An utterance of FRAMES frames: the seed is one that does not end sooner."""
    for seed in range(20):
        speech = tts.generate(text, voice=voice, seed=seed, max_frames=FRAMES, **more)
        if len(speech.frames) == FRAMES:
            return speech
    raise AssertionError("no seed of twenty speaks that long")


def test_the_public_names_are_frozen() -> None:
    assert sorted(qwen3_jax.__all__) == ["Qwen3TTS", "Sampling", "Speech", "SpeechStream", "Voice"]
    public = {name for name in vars(Qwen3TTS) if not name.startswith("_")}
    assert public == {
        "from_pretrained",
        "fingerprint",
        "generate",
        "stream",
        "create_voice",
        "prepare",
        "warmup",
        "languages",
        "speakers",
        "voices",
        "model",
        "model_type",
        "devices",
        "sample_rate",
    }
    assert dir(qwen3_jax) == [*sorted(qwen3_jax.__all__), "__version__"]
    loaded = ["path", "device", "dtype", "voices_dir", "devices", "tensor_parallel"]
    assert list(inspect.signature(Qwen3TTS.from_pretrained).parameters) == loaded
    request = [
        "text",
        "voice",
        "transcript",
        "language",
        "instruct",
        "streaming_text",
        "seed",
        "sampling",
        "max_frames",
        "split",
        "normalize",
    ]
    assert list(inspect.signature(Qwen3TTS.generate).parameters) == ["self", *request, "draw"]
    assert list(inspect.signature(Qwen3TTS.stream).parameters) == ["self", *request, "first_chunk", "chunk", "draw"]
    assert list(inspect.signature(Qwen3TTS.create_voice).parameters) == ["self", "audio_in", "transcript", "name", "x_vector_only_mode"]
    assert list(inspect.signature(Speech).parameters) == ["pcm", "sample_rate", "frames", "finish_reason", "seed"]
    assert list(inspect.signature(Voice).parameters) == ["x_vector", "codes", "transcript", "name"]


def test_a_speech_is_whole(tts: Qwen3TTS, voice: Voice, tmp_path: Path) -> None:
    speech = long(tts, voice)
    assert speech.finish_reason == "length" and speech.frames.shape == (FRAMES, 16)
    assert speech.pcm.shape == (FRAMES * 1920,) and speech.pcm.dtype == np.float32
    assert speech.seconds == pytest.approx(FRAMES * 0.08)
    assert 0.001 < speech.pcm.std() < 1
    speech.save(tmp_path / "out.wav")
    assert (tmp_path / "out.wav").stat().st_size == 44 + 2 * FRAMES * 1920


@pytest.mark.parametrize("chunks", [(1, 4), (8, 8), (1, 1)])
def test_streamed_equals_whole(tts: Qwen3TTS, voice: Voice, icl_voice: Voice, chunks: tuple[int, int]) -> None:
    for one in (voice, icl_voice):
        whole = long(tts, one)
        stream = tts.stream(TEXT, voice=one, seed=whole.seed, max_frames=FRAMES, first_chunk=chunks[0], chunk=chunks[1])
        pieces = list(stream)
        assert len(pieces[0]) == chunks[0] * 1920
        assert_same_sound(np.concatenate(pieces), whole.pcm)
        np.testing.assert_array_equal(stream.frames, whole.frames)
        assert stream.finish_reason == whole.finish_reason


def test_in_context_cloning_continues_the_reference(tts: Qwen3TTS, icl_voice: Voice) -> None:
    """The audio is the tail of decoding the reference's frames and the new ones together, as the official package does it."""
    speech = long(tts, icl_voice)
    together = np.concatenate([icl_voice.codes, speech.frames])[:, None]
    state = init_state(tts.model.codec_config.decoder_config, 1)
    pcm, _ = decode(tts.model.graphs.codec_decoder, tts.model.params["codec"]["decoder"], together, state)
    assert_same_sound(speech.pcm, np.asarray(pcm[0, -len(speech.pcm) :]))


def test_a_batch_equals_its_rows(tts: Qwen3TTS, voice: Voice, icl_voice: Voice) -> None:
    texts, voices, languages = [TEXT, "A longer text, in another voice."], [voice, icl_voice], ["english", "French"]
    batch = tts.generate(texts, voice=voices, language=languages, seed=[1, 2], max_frames=FRAMES)
    for row, speech in enumerate(batch):
        alone = tts.generate(texts[row], voice=voices[row], language=languages[row], seed=row + 1, max_frames=FRAMES)
        np.testing.assert_array_equal(speech.frames, alone.frames)
        assert_same_sound(speech.pcm, alone.pcm)
        assert speech.finish_reason == alone.finish_reason


def test_a_fresh_seed_is_told(tts: Qwen3TTS, voice: Voice) -> None:
    first = tts.generate(TEXT, voice=voice, max_frames=FRAMES)
    again = tts.generate(TEXT, voice=voice, max_frames=FRAMES, seed=first.seed)
    np.testing.assert_array_equal(first.frames, again.frames)


def test_cancel_from_another_thread_ends_the_stream(tts: Qwen3TTS, voice: Voice) -> None:
    whole = long(tts, voice)
    stream = tts.stream(TEXT, voice=voice, seed=whole.seed, max_frames=FRAMES)
    first = next(stream)
    canceller = threading.Thread(target=stream.cancel)
    canceller.start()
    canceller.join(120)
    assert list(stream) == []
    assert stream.finish_reason == "cancelled"
    np.testing.assert_allclose(first, whole.pcm[:1920], atol=1e-5)


def test_leaving_the_context_cancels(tts: Qwen3TTS, voice: Voice) -> None:
    with tts.stream(TEXT, voice=voice, seed=long(tts, voice).seed, max_frames=FRAMES) as stream:
        next(stream)
    assert list(stream) == [] and stream.finish_reason == "cancelled"


def test_requests_of_one_bucket_compile_nothing_new(tts: Qwen3TTS, voice: Voice) -> None:
    def speak(text: str, seed: int, temperature: float) -> None:
        list(tts.stream(text, voice=voice, seed=seed, sampling=Sampling(temperature=temperature), max_frames=FRAMES))

    speak("One text.", 1, 0.9)
    with jax.no_tracing(True):
        speak("Another text, some words longer.", 2, 0.5)


def test_voices_are_saved_and_loaded(tts: Qwen3TTS, voice: Voice, icl_voice: Voice, tmp_path: Path) -> None:
    for number, one in enumerate((voice, icl_voice)):
        path = tmp_path / f"{number}.safetensors"
        one.save(path)
        back = Voice.load(path)
        assert (back.name, back.transcript, back.mode) == (one.name, one.transcript, one.mode)
        np.testing.assert_array_equal(back.x_vector, one.x_vector)
        assert (back.codes is None) == (one.codes is None)
        if one.codes is not None:
            np.testing.assert_array_equal(back.codes, one.codes)
    assert icl_voice.codes is not None and icl_voice.codes.shape == (50, 16)


def test_what_is_not_a_voice_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no voice file"):
        Voice.load(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="bad is not a voice file"):
        Voice.load(tmp_path / "bad")
    with pytest.raises(ValueError, match="both codes and transcript"):
        Voice(np.zeros(4, np.float32), transcript="words")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "  "}, "is empty: give at least one character"),
        ({"text": "word " * 8000, "split": False}, "text tokens: a slot has 32768 positions; split the text"),
        ({"text": 5}, "text of type int: must be a string"),
        ({"language": "Klingon"}, "language 'Klingon': this checkpoint speaks chinese"),
        ({"voice": 5}, "voice of type int: give a Voice, a name, a voice's folder, a recording or a saved voice"),
        ({"voice": "ryan"}, "voice 'ryan': there is no voice of that name .*there is: emma, george, heart, makima"),
        ({"transcript": "Words."}, "transcript: it says what a recording says"),
        ({"temperature": -0.5}, "temperature = -0.5: must be above 0"),
        ({"sampling": {}}, "sampling of type dict: give a Sampling, or its fields by name"),
        ({"language": None}, "language of type NoneType"),
        ({"text": None}, "text of type NoneType: must be a string"),
        ({"instruct": "softly"}, "a Base checkpoint takes no instruction"),
        ({"seed": -1}, "seed = -1: must be a whole number from 0"),
        ({"max_frames": 0}, "max_frames = 0: must be from 1 to 8191"),
        ({"first_chunk": 0}, "first_chunk = 0: must be from 1 to 64"),
        ({"first_chunk": None}, "first_chunk = None: must be from 1 to 64"),
        ({"chunk": 1.5}, "chunk = 1.5: must be from 1 to 64"),
        ({"chunk": True}, "chunk = True: must be from 1 to 64"),
        ({"seed": True}, "seed = True: must be a whole number"),
        ({"max_frames": "3"}, "max_frames = '3': must be from 1"),
        ({"max_frames": 2.0, "split": False}, "max_frames = 2.0: must be from 1"),
        ({"max_frames": True}, "max_frames = True: must be from 1"),
        ({"split": "no"}, "split = 'no': must be True or False"),
        ({"split": None}, "split = None: must be True or False"),
        ({"normalize": 0}, "normalize = 0: must be True or False, or None for the default"),
        ({"streaming_text": "false"}, "streaming_text = 'false': must be True or False, or None"),
        ({"voice": "a" * 5000}, r"voice 'a+\.\.\. \(5002 characters\): there is no voice"),
        ({"voice": (WAVE,)}, "audio as a tuple of 1: must be two things"),
        ({"voice": (WAVE, 24000, 1)}, "audio as a tuple of 3: must be two things"),
    ],
)
def test_bad_requests_are_named(tts: Qwen3TTS, voice: Voice, changes: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tts.stream(**({"text": TEXT, "voice": voice} | changes))


def test_numbers_of_numpy_are_taken_and_come_back_as_pythons(tts: Qwen3TTS, voice: Voice) -> None:
    how: dict[str, Any] = {"seed": np.uint32(2**32 - 1), "max_frames": np.int64(2), "split": np.bool_(True), "chunk": np.int8(2)}
    with tts.stream(TEXT, voice=voice, **how) as stream:
        assert sum(map(len, stream)) == 2 * 1920
    assert type(stream.seed) is int


@pytest.mark.parametrize(("error", "reason"), [(KeyboardInterrupt(), "cancelled"), (RuntimeError("a step failed"), "error")])
def test_a_stream_whose_step_was_interrupted_has_ended(
    tts: Qwen3TTS, voice: Voice, error: BaseException, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tts.stream(TEXT, voice=voice, seed=1, max_frames=FRAMES) as stream:
        next(stream)
        with monkeypatch.context() as patched:
            patched.setattr(JaxDevice, "collect", Mock(side_effect=error))  # the step's caches are gone, its results did not come
            with pytest.raises(type(error)):
                list(stream)
        assert stream.finish_reason == reason
        assert list(stream) == []
    assert len(tts.generate(TEXT, voice=voice, seed=1, max_frames=2).frames)  # others are as before


def test_a_forked_process_is_told_to_load_the_model_itself(tts: Qwen3TTS, voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: -1)
    uses = (
        lambda: tts.generate(TEXT, voice=voice), lambda: tts.stream(TEXT, voice=voice), lambda: tts.create_voice((WAVE, 24000)),
        lambda: tts.prepare(voice), tts.warmup,
    )  # fmt: skip
    for use in uses:
        with pytest.raises(RuntimeError, match="was forked from it: load the model here, or start processes with .*spawn"):
            use()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"temprature": 1}, "temprature; did you mean temperature"),
        ({"speaker": "x"}, "speaker; did you mean voice"),
        ({"lnguage": "English"}, "lnguage; did you mean language"),
        ({"max_new_tokens": 9}, "max_new_tokens; did you mean max_frames"),
        ({"qqqq": 1}, "qqqq;"),
    ],
)
def test_an_argument_that_is_none_is_named(tts: Qwen3TTS, voice: Voice, given: dict, meant: str) -> None:
    for method in ("generate", "stream"):
        with pytest.raises(TypeError) as error:
            getattr(tts, method)(TEXT, **given)
        said = str(error.value)
        assert said.startswith(f"{method}() has no argument {meant}") and f"see help(Qwen3TTS.{method})" in said
        assert " It takes text, voice, " in said and "do_sample, temperature" in said


def test_a_tts_says_what_it_is(checkpoint: Callable[[str], Path], tts: Qwen3TTS) -> None:
    cpu = f"cpu:{jax.devices('cpu')[0].id}"
    assert repr(tts) == f"Qwen3TTS({str(checkpoint('base'))!r}, base, {cpu}, float32)"
    custom = Qwen3TTS.from_pretrained(checkpoint("custom_voice"), device="cpu", dtype="bfloat16")
    assert repr(custom).endswith(f", custom_voice, {cpu}, bfloat16)")


@pytest.mark.slow
def test_a_long_text_is_spoken_part_by_part_without_a_seam(tts: Qwen3TTS, icl_voice: Voice) -> None:
    """The codes of each part are those of its own key, and the codec goes on where the last part ended, within a chunk as a rule."""
    assert len(split_text(LONG, "auto")) == 3
    most, sampling = 60, Sampling.defaults(tts.model.generation)
    for seed in range(20):
        parts = tts.prompts.of(
            LONG, icl_voice, "auto", None, seed, split=True, normalize=False, max_frames=most, streaming_text=None, sampling=sampling
        )
        codes: list[np.ndarray] = []
        for part in parts:
            left = most - sum(map(len, codes))
            silent = request_of([part]).segments[0]  # each is drawn by its number
            before = [replace(silent, max_frames=1)] * len(codes)
            request = replace(request_of([part]), segments=(*before, replace(silent, max_frames=left)))
            codes.append(spoken(tts.model, request)[0])
            if sum(map(len, codes)) == most:
                break
        if len(codes) > 1 and len(codes[0]) % 8:
            break
    else:
        raise AssertionError("no seed of twenty ends its first part soon")
    whole = tts.generate(LONG, voice=icl_voice, seed=seed, max_frames=most)
    np.testing.assert_array_equal(whole.frames, np.concatenate(codes))
    state, pieces = prime(tts.model, icl_voice.codes), []  # the same codec, frame by frame, over the codes of all parts
    for frame in whole.frames:
        pcm, state = decode(tts.model.graphs.codec_decoder, tts.model.params["codec"]["decoder"], frame[None, None], state)
        pieces.append(np.asarray(pcm[0]))
    assert_same_sound(whole.pcm, np.concatenate(pieces))
    streamed = tts.stream(LONG, voice=icl_voice, seed=seed, max_frames=most, first_chunk=1, chunk=3)
    assert_same_sound(np.concatenate(list(streamed)), whole.pcm)
    assert streamed.finish_reason == whole.finish_reason
    batch = tts.generate([TEXT, LONG], voice=icl_voice, seed=seed, max_frames=most)
    np.testing.assert_array_equal(batch[1].frames, whole.frames)


def test_a_voice_by_name_file_or_folder(tts: Qwen3TTS, voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tts, "_choice", VoiceChoice(tts.create_voice, VoiceLayers.single(tmp_path)))
    own = tmp_path / "ann"
    own.mkdir()
    soundfile.write(own / "reference.wav", 0.1 * np.random.RandomState(0).standard_normal(84000), 24000)
    (own / "metadata.json").write_text('{"language": "English", "description": "calm"}', "utf-8")
    assert tts.voices == (("ann", "English", "calm"),)
    recording = tmp_path / "clip.wav"
    recording.write_bytes((own / "reference.wav").read_bytes())
    voice.save(tmp_path / "saved.safetensors")
    expected = tts._chosen("ann")
    assert tts._chosen(None) is tts._chosen("Ann") is expected, "cloned once"
    (tmp_path / "odd.safetensors").mkdir()
    (tmp_path / "odd.safetensors" / "reference.wav").write_bytes((own / "reference.wav").read_bytes())
    np.testing.assert_allclose(tts._chosen("odd.safetensors").x_vector, expected.x_vector, atol=1e-5)
    for given in (own, str(own), recording, str(recording)):
        found = tts._chosen(given)
        np.testing.assert_allclose(found.x_vector, expected.x_vector, atol=1e-5)
        assert found.codes is None
    recording.with_suffix(".txt").write_text("\ufeffWhat it says.", "utf-8")
    assert tts._chosen(recording).transcript == "What it says."
    assert tts._chosen(recording, "Other words.").transcript == "Other words."
    np.testing.assert_array_equal(tts._chosen(str(tmp_path / "saved.safetensors")).x_vector, voice.x_vector)
    samples = np.random.RandomState(1).standard_normal(84000).astype(np.float32) * 0.1
    assert tts._chosen((samples, 24000)).codes is None


@pytest.mark.parametrize("ending", [".wav", ".flac", ".mp3", ".ogg", ".opus", ".MP3"])
def test_a_speech_is_saved_as_its_name_ends(tmp_path: Path, ending: str) -> None:
    pcm = (0.3 * np.sin(np.arange(48000) / 20)).astype(np.float32)
    speech = Speech(pcm, 24000, np.zeros((25, 16), np.int32), "eos", 1)
    speech.save(tmp_path / f"a{ending}")
    with soundfile.SoundFile(tmp_path / f"a{ending}") as file:
        assert file.format == {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3"}.get(ending.lower(), "OGG")
        assert len(file.read()) / file.samplerate == pytest.approx(2, abs=0.1)
    assert repr(speech) == "Speech(2.00 s, 24000 Hz, ended by eos, seed 1)"
    assert speech._repr_html_().startswith('<audio controls src="data:audio/wav;base64,')


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.m4a", "files that end in .m4a are not written; use one of .wav"),
        ("a", "a: the name has no ending.*use one of .wav"),
        ("none/a.wav", "no folder"),
        ("", "is a folder"),
    ],
)
def test_a_speech_that_cannot_be_saved(tmp_path: Path, name: str, message: str) -> None:
    speech = Speech(np.zeros(10, np.float32), 24000, np.zeros((0, 16), np.int32), "eos", 1)
    with pytest.raises((ValueError, OSError), match=message):
        speech.save(tmp_path / name)


def test_a_voice_of_another_codebook_is_refused_where_it_is_used(tts: Qwen3TTS, voice: Voice, icl_voice: Voice) -> None:
    assert icl_voice.codes is not None
    codes = icl_voice.codes.copy()
    codes[3, 0] = 2149  # a control id of the talker's, no sound
    damaged = Voice(icl_voice.x_vector, codes, "What was said.", "damaged")
    for use in (lambda: tts.generate(TEXT, voice=damaged), lambda: tts.stream(TEXT, voice=damaged), lambda: tts.prepare(damaged)):
        with pytest.raises(ValueError, match=r"voice 'damaged': codes\[3, 0\] = 2149, one of 1: book 0 has the entries 0 to 2047"):
            use()
    with pytest.raises(ValueError, match="this checkpoint takes .48,.; clone the voice with it again"):
        tts.prepare(Voice(voice.x_vector[:-1]))


def nan_in(tts: Qwen3TTS, path: list[str], index: int) -> Model:
    """The same checkpoint with one row of one tensor damaged."""

    def damaged(tree: Any, names: list[str]) -> Any:
        if names:
            return {**tree, names[0]: damaged(tree[names[0]], names[1:])}
        copied = np.array(tree)
        if "text_embedding" in path:  # it lies flat in its file
            shape = tts.model.config.talker_config.text_vocab_size, tts.model.config.talker_config.text_hidden_size
            copied = copied[-shape[0] * shape[1] :].reshape(shape)
        copied[index] = np.nan
        return jax.device_put(copied, tree.sharding)

    return tts.model._replace(params=damaged(tts.model.params, path))


@pytest.mark.parametrize("path", [["talker", "codec_head", "weight"], ["codec", "decoder", "pre_conv", "conv", "weight"]])
def test_damaged_weights_are_an_error_and_no_noise(tts: Qwen3TTS, voice: Voice, path: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tts, "model", nan_in(tts, path, 5))
    message = "is NaN or infinite after 0 frames, in segment 0; the voice, or the checkpoint's weights, are damaged: clone"
    with pytest.raises(FloatingPointError, match=message):
        tts.generate(TEXT, voice=voice, seed=1, max_frames=FRAMES)
    stream = tts.stream(TEXT, voice=voice, seed=1, max_frames=FRAMES)
    with pytest.raises(FloatingPointError, match=message):
        next(stream)
    assert list(stream) == [] and stream.finish_reason == "error" and len(stream.frames) == 0


def test_damaged_weights_decode_no_reference(tts: Qwen3TTS, icl_voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tts, "model", nan_in(tts, ["codec", "decoder", "pre_conv", "conv", "weight"], 5))
    with pytest.raises(FloatingPointError, match="what the codec's decoder computed for the reference is NaN or infinite"):
        tts.prepare(Voice(icl_voice.x_vector, icl_voice.codes, "What was said."))


def test_of_a_batch_the_row_that_is_not_finite_is_named_and_a_stream_keeps_what_came_before(
    tts: Qwen3TTS, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding of "%" is damaged: only texts that have one fail, and not before they get there."""
    whole = long(tts, voice)
    monkeypatch.setattr(
        tts, "model", nan_in(tts, ["talker", "model", "text_embedding", "weight"], tts.prompts.reader("%", "text").assistant("%")[3])
    )
    np.testing.assert_array_equal(tts.generate(TEXT, voice=voice, seed=whole.seed, max_frames=FRAMES).frames, whole.frames)
    with pytest.raises(FloatingPointError, match="request 1: what the model computed is NaN or infinite"):
        tts.generate([TEXT, "Hello%"], voice=voice, seed=whole.seed, max_frames=FRAMES)
    stream = tts.stream("Hello%", voice=voice, seed=whole.seed, max_frames=FRAMES, chunk=1)
    with pytest.raises(FloatingPointError):
        list(stream)
    assert len(stream.frames) >= 3, "a letter a frame"


def test_columns_of_a_batch_must_match(tts: Qwen3TTS, voice: Voice) -> None:
    with pytest.raises(ValueError, match="language: 2 values for 3 texts"):
        tts.generate(["a", "b", "c"], voice=voice, language=["english", "french"])


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(96000, np.float32), "silent"),
        (np.full(96000, np.nan, np.float32), "NaN"),
        (WAVE * 1e5, "peaks at .*; full scale is 1"),
        (WAVE[:4800], "lasts 0.200 s: 3 to 30 s are taken; send a longer clip"),
    ],
)
def test_bad_references_are_named(tts: Qwen3TTS, wave: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tts.create_voice((wave, 24000))


@pytest.mark.parametrize(
    ("given", "how", "message"),
    [
        ([WAVE, 24000], {}, r"audio of type list: give the path of a recording, or a tuple \(samples, rate in Hz\)"),
        (WAVE, {}, "audio of type ndarray: give the path"),
        (None, {}, "audio of type NoneType: give the path"),
        ((WAVE,), {}, "audio as a tuple of 1: must be two things"),
        ((WAVE, "24000"), {}, "rate '24000' must be above 0, a number of Hz"),
        ((WAVE, True), {}, "rate True must be above 0, a number"),
        ((WAVE, 24000), {"x_vector_only_mode": "yes"}, "x_vector_only_mode = 'yes': must be True or False, or None for the default"),
    ],
)
def test_what_is_no_recording_is_named(tts: Qwen3TTS, given: Any, how: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tts.create_voice(given, "Words.", **how)


def test_how_a_voice_is_cloned_is_the_callers_choice_or_the_checkpoints(tts: Qwen3TTS, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ((WAVE, 24000), "What was said.")
    assert tts.create_voice(*said).mode == "icl"
    assert tts.create_voice(*said, x_vector_only_mode=True).mode == "xVector"
    prefers = msgspec.structs.replace(tts.model.generation, x_vector_only_mode=True)
    monkeypatch.setattr(tts, "model", tts.model._replace(generation=prefers))
    assert tts.create_voice(*said).mode == "xVector"
    assert tts.create_voice(*said, x_vector_only_mode=False).mode == "icl"


def test_how_a_text_is_read_is_the_callers_choice_or_the_checkpoints(tts: Qwen3TTS, voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(**more: object) -> int:
        return len(tts.prompts.one(TEXT, **({"voice": voice, "language": "auto", "instruct": None, "streaming_text": None, "seed": 1,
                                          "sampling": None, "max_frames": 4} | more)).prompt.text)  # fmt: skip

    streamed, whole = rows(streaming_text=True), rows(streaming_text=False)
    assert whole > streamed and rows() == streamed
    monkeypatch.setattr(tts, "model", tts.model._replace(generation=msgspec.structs.replace(tts.model.generation, non_streaming_mode=True)))
    assert rows() == whole and rows(streaming_text=True) == streamed


@pytest.mark.slow
def test_after_the_warmup_a_text_of_any_usual_length_compiles_nothing(tts: Qwen3TTS, voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr("qwen3_jax.tts.WARM_COLUMNS", (256, 512))
    tts.warmup()

    def count(event: str, _: float, **__: object) -> None:
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for words in (1, 6, 12, 18, 24, 30, 36):
            list(tts.stream(" ".join(["word"] * words), voice=voice, streaming_text=False, seed=1, max_frames=9))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert not [event for event in compiled if event.endswith("backend_compile_duration")]


def test_a_reference_transcript_must_say_something(tts: Qwen3TTS) -> None:
    with pytest.raises(ValueError, match="is empty"):
        tts.create_voice((WAVE, 24000), "  ")


def test_other_kinds_of_checkpoint(checkpoint: Callable[[str], Path], voice: Voice) -> None:
    custom = Qwen3TTS.from_pretrained(checkpoint("custom_voice"))
    assert custom.speakers == ("eric", "ryan") and custom.model_type == "custom_voice"
    assert len(custom.generate(TEXT, voice="Ryan", instruct="Softly.", seed=1, max_frames=3).frames) in (2, 3)
    with pytest.raises(ValueError, match="a custom_voice checkpoint cannot clone voices: load a Base checkpoint"):
        custom.create_voice((WAVE, 24000))
    with pytest.raises(ValueError, match="cannot speak in a cloned voice"):
        custom.generate(TEXT, voice=voice)
    with pytest.raises(ValueError, match="unknown speaker 'bob': this checkpoint has eric, ryan"):
        custom.generate(TEXT, voice="bob")
    with pytest.raises(ValueError, match="no voice: this checkpoint speaks as one of eric, ryan"):
        custom.generate(TEXT)
    design = Qwen3TTS.from_pretrained(checkpoint("voice_design"))
    assert len(design.generate(TEXT, instruct="A low voice.", language="Chinese", seed=1, max_frames=3).frames) in (2, 3)
    with pytest.raises(ValueError, match="takes its voice from instruct"):
        design.generate(TEXT, voice="ryan")


@pytest.mark.parametrize(
    ("changes", "message"), [({"dtype": "float16"}, "float16 overflows"), ({"device": "abacus"}, "device 'abacus' is not to be had")]
)
def test_bad_devices_and_dtypes_are_named(checkpoint: Callable[[str], Path], changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Qwen3TTS.from_pretrained(checkpoint("base"), **changes)


@pytest.mark.slow
def test_bfloat16_speaks(checkpoint: Callable[[str], Path], voice: Voice) -> None:
    tts = Qwen3TTS.from_pretrained(checkpoint("base"), dtype="bfloat16")
    speech = tts.generate(TEXT, voice=voice, seed=1, max_frames=4)
    assert len(speech.frames) >= 2 and np.isfinite(speech.pcm).all()


def test_speech_that_has_ended_holds_no_memory_of_the_device(tts: Qwen3TTS, voice: Voice) -> None:
    """Without Python's collector of cycles, which knows nothing of a device's memory; a stream that is kept, too."""

    def speak() -> Any:
        kept = tts.stream(TEXT, voice=voice, seed=1, max_frames=3)
        assert len(list(kept))
        with tts.stream(TEXT, voice=voice, seed=1, max_frames=3) as left:
            next(left)
        tts.generate([TEXT, TEXT], voice=voice, seed=1, max_frames=3)
        return kept

    speak()
    gc.collect()
    gc.disable()
    try:
        before = len(jax.live_arrays())
        speak()
        assert len(jax.live_arrays()) == before
        kept = [speak() for _ in range(3)]
        assert len(jax.live_arrays()) - before == 3 * len(jax.tree.leaves(init_state(tts.model.codec_config.decoder_config, 1)))
        assert len(kept[0].frames) == 3
    finally:
        gc.enable()
