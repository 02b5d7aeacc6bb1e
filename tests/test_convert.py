"""``python -m convert`` and ``python -m convert verify`` as a user runs them, on tiny random checkpoints."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from convert import __main__ as cli
from convert import verify as verifier
from convert.golden import CASES, FRAMES, read_golden
from convert.verify import verify
from qwen3_jax.checkpoint import converted as checkpoint
from qwen3_jax.checkpoint import hub
from qwen3_jax.model.model import Model, load
from qwen3_jax.testing import write_checkpoint
from qwen3_jax.text.tokenizer_files import TOKENIZER_FILES
from tests.alone import greedy
from tests.test_published import same

F32 = jnp.dtype(jnp.float32)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("published") / "base", "base")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command line, in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


def test_the_command_as_written(tmp_path: Path, published: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "convert", str(published), str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, cwd=Path(__file__).parent.parent)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("talker", "speaker_encoder", "codec.decoder", "codec.encoder", "sha256"):
        assert words in done.stdout
    assert same(load(tmp_path / "c", dtype=F32).params, load(published, dtype=F32).params)
    assert (tmp_path / "c" / "tokenizer.json").is_file()


def test_dtype_and_the_note_about_a_missing_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_checkpoint(tmp_path / "s", "voice_design", with_tokenizer=False)
    assert run(monkeypatch, "--dtype", "bfloat16", source, tmp_path / "c") == 0  # options first, and no command's name
    output = capsys.readouterr().out
    assert "has no tokenizer files" in output
    assert "speaker_encoder" not in output
    arrays = checkpoint.describe(tmp_path / "c")["arrays"]
    assert {dtype for path, (dtype, _) in arrays.items() if path.startswith("talker.")} == {"bfloat16"}
    assert {dtype for path, (dtype, _) in arrays.items() if not path.startswith("talker.")} == {"float32"}
    bfloat16 = jnp.dtype(jnp.bfloat16)
    assert same(load(tmp_path / "c", dtype=bfloat16).params, load(source, dtype=bfloat16).params)


def one_line(text: str) -> str:
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


def test_errors_are_one_line_that_says_what_to_do(
    tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    damaged = write_checkpoint(tmp_path / "damaged", "voice_design")
    tensors = load_file(damaged / "model.safetensors")
    del tensors["talker.model.norm.weight"]
    save_file(tensors, damaged / "model.safetensors")
    for arguments, words in [
        ((tmp_path / "nowhere", tmp_path / "c"), "is not a folder, and not a hub id"),
        ((published, tmp_path / "full"), "exists and is not an empty folder; remove it"),
        ((tmp_path / "empty", tmp_path / "c"), "it has no config.json"),
        ((damaged, tmp_path / "c"), "unfilled parameter 'talker.model.norm.weight'"),
        (("convert", published, tmp_path / "c", "--revision", "x", "--dtype", "bfloat16"), None),
        ((tmp_path / "c", tmp_path / "d"), "is a converted checkpoint already"),
        (("verify", published, tmp_path / "none.safetensors"), "no such golden file"),
    ]:
        status = run(monkeypatch, *arguments)
        shown = capsys.readouterr().err
        if words is None:
            assert (status, shown) == (0, "")
        else:
            assert status == 2
            assert words in one_line(shown)
    assert not (tmp_path / "d").exists()


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection\nand two lines about it")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert run(monkeypatch, "Qwen/Qwen3-TTS-12Hz-0.6B-Base", tmp_path / "c") == 2
    shown = one_line(capsys.readouterr().err)
    for words in ("hub cannot be reached", "./Qwen3-TTS-12Hz-0.6B-Base/ (config.json", "/speech_tokenizer/ inside", "merges.txt"):
        assert words in shown


def test_the_hub_downloads_what_is_read_and_no_more(monkeypatch: pytest.MonkeyPatch, published: Path) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(published)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.local_folder("Qwen/x", "v1") == published
    assert (asked["name"], asked["revision"]) == ("Qwen/x", "v1")
    assert {"config.json", "model.safetensors", "speech_tokenizer/model.safetensors", "merges.txt"} <= set(asked["allow_patterns"])
    assert set(checkpoint.CONFIG_FILES + TOKENIZER_FILES) <= set(asked["allow_patterns"])


def golden_of(folder: Path, file: Path) -> dict[str, np.ndarray]:
    """A golden of our own making: parity with the reference is tested elsewhere, here it is the comparison that is."""
    model = load(folder, dtype=F32)
    noise = np.random.default_rng(0)
    wave = (0.1 * noise.standard_normal(24000)).astype(np.float32)
    body = noise.integers(0, 200, 5)
    made = {
        "wav": wave,
        "mel": verifier.mel_spectrogram(wave),
        "spk": verifier.encode.encode_x_vector(model, wave),
        "codec_codes": verifier.encode.encode_codes(model, wave).astype(np.int64),
        "dec_codes": noise.integers(0, 2048, (1, 3, 16)),
        "ref_code_short": noise.integers(0, 2048, (4, 16)),
    }
    state = verifier.init_state(model.codec_config.decoder_config, 1)
    pcm, _ = verifier._decode(model.graphs.codec_decoder, model.params["codec"]["decoder"], made["dec_codes"].astype(np.int32), state)
    made["dec_wav_full"] = np.asarray(pcm[0])
    for row, length in enumerate((5, 3)):
        made[f"batch_st.{row}.input_ids"] = np.array([257, 256, 10, *body[:length], 258, 10, 257, 256, 10])
    made["batch_st.0.ref_ids"] = np.array([257, 256, 10, 7, 8, 258, 10])
    made |= generated(model, made, file)
    save_file(made, file)
    return made


def generated(model: Model, made: dict[str, np.ndarray], file: Path) -> dict[str, np.ndarray]:
    empty = {f"batch_st.{row}.{what}": np.zeros((0, width)) for row in (0, 1) for what, width in (("codes", 16), ("hidden", 48))}
    save_file(made | empty, file)
    golden = read_golden(file)
    prompts = [verifier._prompt(model, golden, row, True) for row in golden.cases["batch", True]]
    made = {}
    for row, prompt in enumerate(prompts):
        made[f"batch_st.{row}.codes"], made[f"batch_st.{row}.hidden"] = greedy(model, prompt, FRAMES)
    return made


@pytest.mark.slow
def test_verify(tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "golden.safetensors"
    made = golden_of(published, file)
    results = {result.part: result for result in verify(published, file)}
    assert results.keys() == {
        "mel",
        "x-vector",
        "codec encode",
        "codec decode, whole",
        "codec decode, frame by frame",
        "batch_st.0",
        "batch_st.1",
    }
    assert all(result.passed for result in results.values())

    # every part can fail, alone
    changed = made | {
        "mel": made["mel"] * 1.001,
        "codec_codes": made["codec_codes"][:, ::-1],
        "dec_wav_full": made["dec_wav_full"] * 1.001,
        "batch_st.0.codes": made["batch_st.0.codes"][:-1],
        "batch_st.0.hidden": made["batch_st.0.hidden"][:-1],
        "batch_st.1.hidden": made["batch_st.1.hidden"] * 1.001,
    }
    save_file({name: np.ascontiguousarray(array) for name, array in changed.items()}, file)
    monkeypatch.setattr(cli.compilation, "use_persistent_cache", lambda: None)
    assert run(monkeypatch, "verify", published, file) == 1
    shown = capsys.readouterr()
    assert "6 of 7 parts differ: mel, codec encode, codec decode, whole, codec decode, frame by frame, batch_st.0, batch_st.1" in shown.err
    assert "FAILED" in shown.out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise_st.0.codes": (1, 16)}, "unknown key 'surprise_st.0.codes'"),
        ({"ryan_st.0.codes": (1, 16)}, "case 'ryan' row 0 lacks hidden, input_ids"),
        ({"batch_ns.1.codes": (1, 16)}, r"case 'batch' has rows \[1\], expected 2 from 0"),
    ],
)
def test_a_golden_that_is_not_whole(tmp_path: Path, change: dict[str, tuple[int, ...]], words: str) -> None:
    file = tmp_path / "golden.safetensors"
    save_file({name: np.zeros(shape, np.float32) for name, shape in change.items()}, file)
    with pytest.raises(ValueError, match=words):
        read_golden(file)
    file.write_bytes(b"no")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_golden(file)


def test_every_case_says_what_it_needs() -> None:
    assert {name for name, rows in CASES.items() if any(row.speaker for row in rows)} == {"ryan", "dialect"}
    assert all((row.reference is None) or row.x_vector for rows in CASES.values() for row in rows)
