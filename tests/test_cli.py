"""``python -m qwen3_jax``: commands, and errors in one line with exit status 2. Most of it with a model that only counts."""

import io
import os
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from qwen3_jax import Qwen3TTS, Voice, terminal
from qwen3_jax.audio.samples import to_pcm16
from qwen3_jax.cli import main
from qwen3_jax.runtime.devices import device_of
from tests.fake_engine import LIMIT
from tests.fake_tts import FakeTTS, tone

Run = Callable[..., tuple[int, bytes, str]]
WHOLE = b"".join(to_pcm16(tone(index)) for index in range(3))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Run:
    """Run the program: exit status, stdout, stderr."""
    for name in ("TTS_MODEL_ID", "TTS_VOICES_DIR", "TTS_DEFAULT_VOICE", "TTS_DEVICE", "TTS_DTYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(terminal.console, "_width", 200)  # the variable counts when the module is imported
    monkeypatch.delenv("TTS_SHIPPED_VOICES", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("qwen3_jax.voices.layers._SHIPPED", ())
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "argv", ["qwen3_jax", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsysbinary.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err.decode()

    return run


@pytest.fixture
def tts(monkeypatch: pytest.MonkeyPatch) -> FakeTTS:
    """Every checkpoint is a fake."""
    fake = FakeTTS()
    monkeypatch.setattr(Qwen3TTS, "from_pretrained", lambda *_, **__: fake)
    return fake


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    """A folder of two voices."""
    folder = tmp_path / "voices"
    for name, transcript in (("anna", "Good evening."), ("boris", None)):
        (folder / name).mkdir(parents=True)
        write_wav(folder / name / "reference.wav")
        if transcript:
            (folder / name / "transcript.txt").write_text(transcript, "utf-8")
    (folder / "anna" / "metadata.json").write_text('{"name": "Anna A.", "licence": "CC0", "colour": "red"}', "utf-8")
    return folder


def write_wav(path: Path, seconds: float = 3.5) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, int(24000 * seconds)).astype(np.float32)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 24000, 0, "NONE", ""))
        file.writeframes(to_pcm16(samples))


def read_wav(path: Path) -> tuple[bytes, int]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.readframes(file.getnframes()), file.getframerate()


def test_what_is_no_sound_is_an_error_and_no_file(run: Run, tts: FakeTTS, voices: Path, tmp_path: Path) -> None:
    for place in (("-o", tmp_path / "a.wav"), ("--stream",)):
        code, out, err = run("say", "It is nan.", *place, "--model", "m", "--voices-dir", voices, "--voice", "anna")
        assert (code, out) == (2, b"" if "-o" in place else to_pcm16(tone(0)))
        assert "error: audio has 1920 NaN or infinite samples of" in err and "Traceback" not in err
    assert not (tmp_path / "a.wav").exists()


def test_say_writes_a_wav(run: Run, tts: FakeTTS, voices: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "say", "Hi.", "-o", tmp_path / "a.wav", "--model", "m", "--voices-dir", voices, "--voice", "anna",
        "--language", "English", "--seed", "3", "--temperature", "0.5", "--max-frames", "9",
    )  # fmt: skip
    assert (code, out) == (0, b"")
    assert "0.24 s, ended by eos, seed 3" in err
    assert read_wav(tmp_path / "a.wav") == (WHOLE, 24000)
    request = tts.streams[0].request
    assert (request.text, request.voice.name, request.language, request.seed, request.max_frames) == ("Hi.", "anna", "English", 3, 9)
    assert (request.sampling.temperature, request.sampling.top_k) == (0.5, 50)
    assert tts.cloned == [("anna", "Good evening.")]


def test_stream_writes_only_pcm_to_stdout(run: Run, tts: FakeTTS, voices: Path) -> None:
    code, out, err = run("say", "Hi.", "--stream", "--model", "m", "--voices-dir", voices, "--voice", voices / "boris")
    assert (code, out) == (0, WHOLE)
    assert "ended by eos" in err
    assert tts.cloned == [("boris", None)]


def test_ctrl_c_is_one_line_and_status_130(run: Run, tts: FakeTTS, voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    given = ("--model", "m", "--voices-dir", voices, "--voice", "anna")
    (tmp_path / "a.wav").write_bytes(b"before")
    for where in ("tests.fake_tts.tone", "qwen3_jax.voices.choice.find_voice", "soundfile.SoundFile.write"):
        with monkeypatch.context() as patch:
            patch.setattr(where, interrupted)
            code, out, err = run("say", "Hi.", "-o", tmp_path / "a.wav", *given)
        assert (code, out) == (130, b"") and err.endswith("interrupted: nothing was written\n"), where
        assert "Traceback" not in err and (tmp_path / "a.wav").read_bytes() == b"before"
    monkeypatch.setattr("tests.fake_tts.tone", interrupted)
    code, _, err = run("say", "Hi.", "--stream", *given)
    assert code == 130 and err.endswith("interrupted: what went to stdout is not all of the text\n")


def test_a_reader_that_leaves_ends_the_speech(run: Run, tts: FakeTTS, voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe(io.StringIO):
        """Of a reader that has left."""

        @property
        def buffer(self) -> io.BufferedWriter:
            raise BrokenPipeError

        def fileno(self) -> int:
            return os.dup(2)

    monkeypatch.setattr(sys, "stdout", Pipe())
    code, _, err = run("say", "Hi.", "--stream", "--seed", "1", "--model", "m", "--voices-dir", voices)
    assert code == 0 and "ended by the reader, seed 1" in err
    assert tts.streams[0].cancelled.is_set()


@pytest.mark.parametrize(("text", "normalize", "said"), [("", None, "is empty"), ("\U0001f642", None, "no word"), ("***", True, "no word")])
def test_a_text_with_nothing_to_say_loads_no_model(
    run: Run, monkeypatch: pytest.MonkeyPatch, text: str, normalize: bool | None, said: str
) -> None:
    monkeypatch.setattr(Qwen3TTS, "from_pretrained", lambda *_, **__: pytest.fail("the model is loaded"))
    given = ("--model", "not/here", "--normalize") if normalize else ()
    code, out, err = run("say", text, "--stream", *given)
    assert (code, out) == (2, b"") and said in err


def test_dash_reads_stdin(run: Run, tts: FakeTTS, voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("From a pipe."))
    assert run("say", "-", "--stream", "--model", "m", "--voices-dir", voices)[0] == 0
    assert tts.streams[0].request.text == "From a pipe."
    assert tts.cloned[0][0] == "anna", "the first of the folder is the default"


class Stdin:
    """As sys.stdin: bytes below."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("Café".encode(), None),
        ("\ufeffCafé".encode(), None),
        (
            "Café".encode("latin-1"),
            "stdin is not UTF-8: byte 0xe9 at 3 is no part of it; save it as UTF-8, or, if it is Latin-1, convert",
        ),
        ("Café".encode("utf-16"), "stdin is not UTF-8: it looks like UTF-16; save it as UTF-8, or convert it: iconv"),
        ("Café".encode("utf-16-le"), "stdin is not UTF-8: it looks like UTF-16"),
        (b"\xed\xb0\x80", "stdin is not UTF-8: byte 0xed at 0"),
    ],
)
def test_stdin_is_utf_8(run: Run, tts: FakeTTS, voices: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, said: str | None) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    code, _, err = run("say", "-", "--stream", "--model", "m", "--voices-dir", voices)
    if said is None:
        assert (code, tts.streams[0].request.text) == (0, "Café")
    else:
        assert code == 2 and said in err and "Traceback" not in err and not tts.streams


def test_half_a_surrogate_pair_is_refused_in_words(run: Run, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """As Python has an argument that is not in the terminal's encoding."""
    write_wav(tmp_path / "ref.wav")
    code, _, err = run("say", "caf\udce9", "--no-normalize", "--stream", "--model", checkpoint("base"), "--reference", tmp_path / "ref.wav")
    assert code == 2 and "U+DCE9, half of a surrogate pair, which is no character" in err and "Traceback" not in err


def test_temperature_0_is_greedy_and_seed_minus_1_a_fresh_one(run: Run, tts: FakeTTS, voices: Path) -> None:
    given = ("--stream", "--model", "m", "--voices-dir", voices)
    assert run("say", "Hi.", *given, "--temperature", "0", "--seed", "-1")[0] == 0
    request = tts.streams[0].request
    assert (request.sampling.do_sample, request.sampling.subtalker_dosample, request.seed) == (False, False, None)
    for value in ("-1", "1e-39", "nan"):
        code, _, err = run("say", "Hi.", *given, "--temperature", value)
        assert code == 2 and "use 0 (greedy decoding), or a number from 1e-20 to 1e+20" in err


def test_nothing_in_an_error_or_a_name_is_markup(run: Run, tts: FakeTTS, voices: Path, tmp_path: Path) -> None:
    code, _, err = run("say", "Hi.", "--model", "m", "--voices-dir", voices, "-o", tmp_path / "a[x].wav")
    assert code == 0 and "a[x].wav: 0.24 s" in err
    code, _, err = run("say", "Hi.", "--stream", "--model", "m", "--voices-dir", voices, "--voice", "a[/x]\x1b[2J\x9b31m:smile:")
    assert code == 2 and r"a[/x]\x1b[2J\x9b31m:smile:" in err.replace(r"\\", "\\") and "\x1b" not in err
    (voices / "c[x]\x1b[2J").mkdir()
    (voices / "c[x]\x1b[2J" / "reference.wav").write_bytes(b"")
    code, out, err = run("voices", "--voices-dir", voices)
    assert code == 0 and r"c[x]\x1b[2J" in out.decode() and b"\x1b" not in out, err


def test_a_tilde_is_the_home_in_every_option_that_names_a_file(
    run: Run, tts: FakeTTS, voices: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / "voices").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    write_wav(home / "ref.wav")
    (home / "words.txt").write_text("These are the words that are said.", "utf-8-sig")
    given = ("--model", "m")
    assert run("say", "Hi.", *given, "--reference=~/ref.wav", "--output=~/a.wav")[0] == 0
    assert (home / "a.wav").is_file()
    assert run("say", "Hi.", *given, "--stream", "--voice=~/ref.wav")[0] == 0
    assert run("voices", "check", "~/ref.wav", "--transcript=~/words.txt")[0] == 0
    add = ("voices", "add", "~/ref.wav", "--id", "mine", "--consent", "Yes.", "--transcript=~/words.txt")
    assert run(*add, "--voices-dir=~/voices")[0] == 0
    assert (home / "voices" / "mine" / "transcript.txt").read_text() == "These are the words that are said.\n"
    code, _, err = run("say", "Hi.", *given, "-o", "~nobody-of-that-name/a.wav")
    assert code == 2 and "there is no folder ~nobody-of-that-name" in err
    code, _, err = run(*add, "--voices-dir", "")
    assert code == 2 and "a folder of voices named ''" in err
    monkeypatch.setenv("TTS_VOICES_DIR", "simplecache::s3://bucket/voices")
    code, _, err = run("voices", "list")
    assert code == 2 and "chains of addresses (a::b) are not taken" in err


def test_a_reference_or_a_saved_voice(run: Run, tts: FakeTTS, tmp_path: Path) -> None:
    write_wav(tmp_path / "ref.wav")
    assert run("say", "Hi.", "--stream", "--model", "m", "--reference", tmp_path / "ref.wav", "--transcript", "So.")[0] == 0
    assert tts.cloned == [("voice", "So.")]
    Voice(np.zeros(4, np.float32), name="saved").save(tmp_path / "v.safetensors")
    assert run("say", "Hi.", "--stream", "--model", "m", "--voice", tmp_path / "v.safetensors")[0] == 0
    assert tts.streams[1].request.voice.name == "saved"


def test_a_preset_speaker(run: Run, tts: FakeTTS) -> None:
    tts.model_type, tts.speakers = "custom_voice", ("ryan",)
    assert run("say", "Hi.", "--stream", "--model", "m", "--voice", "ryan", "--instruct", "Softly.")[0] == 0
    assert (tts.streams[0].request.voice, tts.streams[0].request.instruct) == ("ryan", "Softly.")


def test_without_a_model_the_embedded_voice_speaks(
    run: Run, tts: FakeTTS, voices: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def load(name: str, **_: object) -> FakeTTS:
        asked.append(name)
        return tts

    monkeypatch.setattr(Qwen3TTS, "from_pretrained", load)
    status, _, said = run("say", "Hi.", "--stream", "--voices-dir", voices)
    assert (status, asked) == (0, ["embedded"])
    assert "model: embedded" in said and "--model Qwen/Qwen3-TTS-12Hz-0.6B-Base" in said
    monkeypatch.undo()
    monkeypatch.setattr("qwen3_jax.checkpoint.hub.EMBEDDED_FOLDER", tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="there is no embedded voice"):
        Qwen3TTS.from_pretrained("embedded")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["say", "Hi.", "--model", "m"], "give either -o FILE or --stream"),
        (["say", "Hi.", "--model", "m", "-o", "a.wav", "--stream"], "give either -o FILE or --stream"),
        (["say", "Hi.", "--model", "m", "-o", "nowhere/a.wav"], "there is no folder nowhere"),
        (["say", "Hi.", "--model", "m", "-o", "-"], "use --stream for raw PCM on stdout, or a name in one of .wav, .flac"),
        (["say", "Hi.", "--model", "m", "-o", "hello"], "hello: the name has no ending that says the format; use one of .wav, .flac"),
        (["say", "Hi.", "--model", "m", "-o", "a.m4a"], "files that end in .m4a are not written; use one of .wav, .flac"),
        (["say", " ", "--model", "m", "--stream"], "is empty"),
        (["say", "Hi.", "--model", "m", "--stream", "--transcript", "So."], "give that too"),
        (["say", "Hi.", "--model", "m", "--stream", "--voice", "a", "--reference", "b"], "either --voice or --reference"),
        (["say", "Hi.", "--model", "m", "--stream"], "no voice: there is none"),
        (["say", "Hi.", "--model", "m", "--stream", "--voice", "zoe"], "qwen3-jax/voices (user) (there is: nothing)"),
        (["say", "Hi.", "--model", "m", "--stream", "--voice", "zoe.safetensors"], "no voice file zoe.safetensors"),
        (["say", "Hi.", "--model", "m", "--stream", "--temperature", "0"], "no voice"),
        (["info", "--model", "nowhere"], "nowhere is not a folder"),
        (["serve", "--port", "99999"], "TTS_PORT = 99999"),
        (["convert", "nowhere", "there"], "nowhere is not a folder"),
    ],
)
def test_errors_are_one_line_and_status_2(
    arguments: list[str], said: str, run: Run, tts: FakeTTS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, b"")
    [line] = [line for line in err.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert said in line


def test_bad_usage_is_status_2(run: Run) -> None:
    assert run("say")[0] == 2
    assert run("sing")[0] == 2


def test_voices_lists_the_folder(run: Run, voices: Path, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for model, both in (("not/here", True), (checkpoint("base"), True), ("embedded", False)):
        code, out, _ = run("voices", "--voices-dir", voices, "--model", model)
        assert code == 0
        rows = {row[0]: row for line in out.decode().splitlines() if (row := [cell.strip() for cell in line.split("│")])}
        anna, boris = rows["anna"], rows["boris"]
        assert anna == ["anna", "timbre and manner (in-context)" if both else "timbre", "", "Anna A.", "3.5", "named", "CC0"]
        assert boris[:2] == ["boris", "timbre"]
    assert b"there is no voice" in run("voices", "--voices-dir", tmp_path / "none")[1]


def test_no_id_is_cut_in_a_narrow_terminal(run: Run, voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.console, "_width", 80)
    (voices / "anna").rename(voices / "anna-of-the-long-names-2026")
    (voices / "boris").rename(voices / ("b" * 40 + "o" * 24))
    out = run("voices", "--voices-dir", voices, "--model", "not/here")[1].decode()
    ids = [line.split("│")[0].strip() for line in out.splitlines() if "│" in line]
    assert "anna-of-the-long-names-2026" in ids and "b" * 40 + "o" * 24 in "".join(ids)
    assert "…" not in "".join(ids) and all(len(line) <= 80 for line in out.splitlines() if "│" in line)


def test_voices_are_added_to_the_folder_here_or_else_to_the_users(
    run: Run, tts: FakeTTS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = tmp_path / "package"
    (shipped / "makima").mkdir(parents=True)
    write_wav(shipped / "makima" / "reference.wav", 4.0)
    before = sorted(shipped.rglob("*"))
    monkeypatch.setattr("qwen3_jax.voices.layers._SHIPPED", (shipped,))
    write_wav(tmp_path / "ref.wav", 5.0)
    add = ("voices", "add", "ref.wav", "--consent", "It is noise.", "--id")
    for here, folder in ((False, tmp_path / "data" / "qwen3-jax" / "voices"), (True, tmp_path / "voices")):
        if here:
            folder.mkdir()
        for name in ("mine", "makima"):  # the latter takes the place of the one that ships
            code, _, err = run(*add, name)
            assert code == 0, err
            assert (folder / name / "reference.wav").is_file()
        listed = run("voices", "list")[1].decode()
        assert [line.split("│")[4].strip() for line in listed.splitlines() if "mine" in line or "makima" in line] == ["5.0", "5.0"]
        assert run("say", "Hi.", "--stream", "--model", "m", "--voice", "mine")[0] == 0
        for name in ("mine", "makima"):
            code, out, _ = run("voices", "remove", name)
            assert code == 0 and out.decode() == f"removed: {folder / name}\n"
        assert sorted(folder.iterdir()) == []
    assert "│ 4.0 " in run("voices", "list")[1].decode(), "the one that ships is there again"
    for missing in ("--id", "--consent"):
        given = {"--id": "mine", "--consent": "It is noise."} | {missing: ""}
        code, _, err = run("voices", "add", "ref.wav", *(word for item in given.items() for word in item if item[1]))
        assert code == 2 and err.startswith(f"error: {missing} is required: ") and err.count("\n") == 1
    (tmp_path / "file").write_text("in the way")
    code, _, err = run(*add, "mine", "--voices-dir", tmp_path / "file" / "voices")
    assert code == 2 and "Not a directory; give --voices-dir a folder" in err
    code, _, err = run("voices", "remove", "makima")
    assert code == 2 and "comes with the package and stays" in err
    assert sorted(shipped.rglob("*")) == before
    assert b"there is no voice" in run("voices", "list", "--no-shipped-voices")[1]
    assert run("voices", "remove", "makima", "--voices-dir", shipped)[0] == 0, "what was asked for by name is done"
    assert not (shipped / "makima").exists()


def test_a_voice_whose_metadata_is_broken_is_named_and_the_rest_speak(run: Run, tts: FakeTTS, voices: Path) -> None:
    (voices / "anna" / "metadata.json").write_text("[]", "utf-8")
    code, out, _ = run("voices", "--voices-dir", voices)
    assert code == 0
    assert "boris" in out.decode() and "anna/metadata.json is not a voice's metadata" in out.decode()
    code, _, err = run("say", "Hi.", "--stream", "--model", "m", "--voices-dir", voices)
    assert code == 0
    assert "anna/metadata.json is not a voice's metadata" in err and "voice: boris" in err
    code, _, err = run("voices", "remove", "anna", "--voices-dir", voices)
    assert code == 2 and "'anna' is left out" in err and "anna/metadata.json" in err


def test_a_tilde_is_the_home_in_the_models_and_the_voices_option(
    run: Run, tts: FakeTTS, voices: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(checkpoint("base").parent))
    assert run("info", "--model", f"~/{checkpoint('base').name}")[0] == 0
    monkeypatch.setenv("TTS_MODEL_ID", f"~/{checkpoint('base').name}")
    assert run("info")[0] == 0
    monkeypatch.setenv("HOME", str(voices.parent))
    assert run("say", "Hi.", "--stream", "--model", "m", "--voices-dir=~/voices", "--voice", "~/voices/boris")[0] == 0
    monkeypatch.setenv("TTS_VOICES_DIR", "~/voices")
    assert b"boris" in run("voices", "list")[1]
    assert run("voices", "remove", "boris")[0] == 0
    assert not (voices / "boris").exists()
    code, _, err = run("info", "--model", "~nobody-of-that-name/x")
    assert code == 2 and "~nobody-of-that-name/x is not a folder" in err


def test_nothing_in_a_listing_is_markup(run: Run, voices: Path) -> None:
    (voices / "anna" / "metadata.json").write_text('{"name": "a[/x]\\u001b[2J"}', "utf-8")
    code, out, err = run("voices", "--voices-dir", voices)
    assert code == 0, err
    assert r"a[/x]\x1b[2J" in out.decode() and b"\x1b" not in out


def test_info_describes_a_checkpoint(run: Run, checkpoint: Callable[[str], Path]) -> None:
    code, out, _ = run("info", "--model", checkpoint("custom_voice"))
    assert code == 0
    for word in ("custom_voice", "24000 Hz", "english", "ryan", "parameters", "cpu:0"):
        assert word in out.decode()


def test_a_platform_that_is_not_there_is_one_line_and_status_2() -> None:
    """``cuda`` without a GPU and a name that JAX does not know end in different errors of JAX's."""

    def info(platform: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "qwen3_jax", "info"]
        given = {**os.environ, "JAX_PLATFORMS": platform}
        return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    platforms = ("nonsense", "cpu,nonsense", *(() if any(device.platform == "gpu" for device in jax.devices()) else ("cuda",)))
    for platform, process in [(platform, info(platform)) for platform in platforms]:
        out, told = process.communicate(timeout=LIMIT)
        assert process.returncode == 2 and out == "", platform
        [line] = told.splitlines()
        assert line.startswith(f"error: JAX_PLATFORMS = '{platform}' is not to be had") and "this machine has " in line and "cpu:0" in line


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    for name in ("nonsense", "cpu:99", "cpu:x"):
        with pytest.raises(ValueError, match=rf"device '{name}' is not to be had: this machine has .*cpu:0"):
            device_of(name)
    if all(device.platform != "gpu" for device in jax.devices()):
        for name in ("cuda", "gpu", "cuda:1"):
            with pytest.raises(ValueError, match=r"; (for an NVIDIA GPU: pip install 'qwen3-jax\[cuda12\]', in|JAX's CUDA plugin)"):
                device_of(name)
    assert device_of("cpu").platform == device_of("cpu:0").platform == "cpu"


def test_the_usage_of_convert_is_what_a_user_types(run: Run) -> None:
    for arguments in (["a", "b", "--dtype", "int4"], ["a"]):
        code, _, err = run("convert", *arguments)
        assert code == 2 and "Usage: python -m qwen3_jax convert [OPTIONS] {SRC} {DST}" in err


def test_convert_passes_its_arguments_on(run: Run) -> None:
    code, out, _ = run("convert", "verify", "--help")
    assert code == 0
    assert b"GOLDEN" in out


def test_end_to_end_on_a_tiny_checkpoint(run: Run, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """The real model: a WAV and a stream of the same seed hold the same samples."""
    write_wav(tmp_path / "ref.wav")
    given = ["--model", checkpoint("base"), "--reference", tmp_path / "ref.wav", "--transcript", "Hm.", "--seed", "1", "--max-frames", "7"]
    code, _, err = run("say", "Hello there.", "-o", tmp_path / "a.wav", *given)
    assert code == 0, err
    code, streamed, _ = run("say", "Hello there.", "--stream", *given)
    assert code == 0
    pcm, rate = read_wav(tmp_path / "a.wav")
    assert (pcm, rate) == (streamed, 24000)
    assert len(pcm) % (2 * 1920) == 0
    assert np.frombuffer(pcm, "<i2").any()
