"""The five published types, with configs and tensors as transformers 4.57 and 5 write them: info, convert, say, from either layout."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

from qwen3_jax import Qwen3TTS
from qwen3_jax.cli import main
from qwen3_jax.testing import write_checkpoint

TYPES = [("base", "0b6"), ("base", "1b7"), ("custom_voice", "0b6"), ("custom_voice", "1b7"), ("voice_design", "1b7")]
SPEAK: dict[str, list[str]] = {
    "base": ["--reference", "reference.wav", "--transcript", "What it says."],
    "custom_voice": ["--voice", "Ryan"],
    "voice_design": ["--instruct", "A calm, deep voice."],
}


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run ``python -m qwen3_jax``; what it printed."""
    monkeypatch.setattr(sys, "argv", ["qwen3_jax", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


def as_transformers_5_names_them(file: Path) -> None:
    """Mimi's parts below its encoder (mapping.RENAMED)."""

    def renamed(name: str) -> str:
        if not name.startswith("encoder."):
            return name
        rest = name.removeprefix("encoder.")
        return (
            f"encoder.encoder.encoder_seanet.{rest.removeprefix('encoder.')}" if rest.startswith("encoder.") else f"encoder.encoder.{rest}"
        )

    save_file({renamed(name): array for name, array in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), TYPES, ids=map("-".join, TYPES))
def test_info_convert_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, size: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    soundfile.write("reference.wav", 0.3 * np.random.RandomState(0).standard_normal(24000 * 3).clip(-1, 1), 24000)
    spoken: dict[str, Any] = {}
    for transformers in ("4.57", "5"):
        folder = write_checkpoint(tmp_path / transformers, kind, 5, size=size, transformers=transformers)
        if transformers == "5":
            as_transformers_5_names_them(folder / "speech_tokenizer" / "model.safetensors")
        shown = run(monkeypatch, capsys, "info", "--model", folder)
        assert f"{kind}, {size}, 24000 Hz" in shown
        assert ("ryan" in shown) == (kind == "custom_voice")
        shown = run(monkeypatch, capsys, "convert", folder, tmp_path / f"{transformers}-converted")
        assert "custom_voice" in shown or kind in shown
        for model in (folder, tmp_path / f"{transformers}-converted"):
            how = ["--model", model, "--language", "English", "--seed", "3", "--max-frames", "6"]
            run(monkeypatch, capsys, "say", "Hello there.", "-o", "out.wav", *how, *SPEAK[kind])
            spoken[model.name] = Path("out.wav").read_bytes()
    assert len(set(spoken.values())) == 1
    assert np.abs(soundfile.read("out.wav")[0]).max() > 0


def test_a_speaker_in_any_case(tmp_path: Path) -> None:
    tts = Qwen3TTS.from_pretrained(write_checkpoint(tmp_path / "c", "custom_voice"))
    assert tts.speakers == ("eric", "ryan")
    with pytest.raises(ValueError, match="unknown speaker 'Ann': this checkpoint has eric, ryan"):
        tts.generate("Hello.", voice="Ann")
