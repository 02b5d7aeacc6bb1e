"""Sound in and out: the mel, the reader with its errors, and the writer."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from qwen3_jax.audio import samples as audio

GOLDEN = load_file(Path(__file__).parent / "golden" / "base.safetensors")


def tone(seconds: float, rate: int = 24000, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_mel_equals_published_package() -> None:
    mel = audio.mel_spectrogram(GOLDEN["wav"])
    assert mel.shape == GOLDEN["mel"].shape
    assert mel.dtype == np.float32
    assert np.abs(mel - GOLDEN["mel"]).max() / np.abs(GOLDEN["mel"]).max() < 1e-4


@pytest.mark.parametrize("samples", [24000, 24255, 24256])
def test_mel_has_one_frame_per_256_samples(samples: int) -> None:
    assert audio.mel_spectrogram(tone(2)[:samples]).shape == (samples // 256, 128)


@pytest.mark.parametrize(("name", "subtype", "tolerance"), [("a.wav", "FLOAT", 0.0), ("a.flac", "PCM_16", 1e-4), ("a.ogg", "VORBIS", 0.1)])
def test_load_audio_reads_any_format(tmp_path: Path, name: str, subtype: str, tolerance: float) -> None:
    wave = tone(1.0)
    soundfile.write(tmp_path / name, wave, 24000, subtype=subtype)
    loaded = audio.load_audio(tmp_path / name)
    assert loaded.dtype == np.float32
    assert loaded.shape == wave.shape
    assert np.abs(loaded - wave).max() <= tolerance


def test_load_audio_mixes_and_resamples(tmp_path: Path) -> None:
    stereo = np.stack([tone(1.0, 44100), tone(1.0, 44100, level=0.1)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 44100, subtype="FLOAT")
    loaded = audio.load_audio(tmp_path / "a.wav")
    assert loaded.shape == (24000,)
    assert np.abs(loaded - tone(1.0, level=0.2))[200:-200].max() < 1e-3
    np.testing.assert_array_equal(audio.load_audio((stereo, 44100)), loaded)
    np.testing.assert_array_equal(audio.load_audio(str(tmp_path / "a.wav")), loaded)


def test_load_audio_scales_integers() -> None:
    loaded = audio.load_audio((np.array([-32768, 0, 16384], np.int16), 24000))
    assert loaded.tolist() == [-1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros((2, 2, 2), np.float32), 24000, r"shape \(2, 2, 2\)"),
        (np.zeros((2, 24000), np.float32), 24000, r"shape \(2, 24000\).*transpose"),
        (np.zeros(9, np.float32), 0, r"rate 0 must be above 0"),
        (np.zeros(9, np.float32), -1, r"rate -1 must be above 0"),
        (np.zeros(9, np.float32), float("nan"), r"rate nan must be above 0"),
        (np.zeros(9, np.float32), float("inf"), r"audio at inf Hz: must be from 1000 to 1000000 Hz"),
        (np.zeros(9, np.float32), True, r"rate True must be above 0, a number of Hz"),
        (np.zeros(9, np.float32), "24000", r"rate '24000' must be above 0, a number of Hz"),
        (np.zeros((9, 0), np.float32), 24000, r"shape \(9, 0\)"),
        (np.zeros(9, np.uint8), 24000, r"dtype uint8.*float32"),
    ],
)
def test_load_audio_refuses_arrays_by_name(array: np.ndarray, rate: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audio.load_audio((array, rate))


def test_load_audio_refuses_files_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing.wav: no such audio file"):
        audio.load_audio(tmp_path / "missing.wav")
    (tmp_path / "text.wav").write_text("not a sound")
    with pytest.raises(ValueError, match=r"text\.wav: not a readable sound .*convert it to one of .*WAV"):
        audio.load_audio(tmp_path / "text.wav")


def test_pcm16_rounds_and_clips() -> None:
    wave = np.array([0.0, 1.0, -1.0, 2.0, -2.0, 0.6 / 32767, -0.6 / 32767, 0.4 / 32767], np.float32)
    assert audio.to_pcm16(wave) == np.array([0, 32767, -32767, 32767, -32767, 1, -1, 0], "<i2").tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_made_16_bit(tmp_path: Path, value: float) -> None:
    wave = np.array([0.0, value, 0.5], np.float32)
    for write in (audio.to_pcm16, audio.pcm16, lambda wave: audio.write_wav(tmp_path / "a.wav", wave)):
        with pytest.raises(FloatingPointError, match="audio has 1 NaN or infinite samples of 3"):
            write(wave)
    assert not (tmp_path / "a.wav").exists()


@pytest.mark.parametrize(
    "samples",
    [np.full(48000, 1e39), np.full((48000, 2), [np.inf, -np.inf], np.float32), np.full((48000, 2), 3e38, np.float32)],
    ids=["beyond float32", "opposite", "sum beyond float32"],
)
def test_what_overflows_is_infinite(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match="96000 NaN or infinite samples of 96000"):
        audio.load_reference((np.concatenate([samples, samples]), 24000))


def test_write_wav_has_the_samples_of_pcm16(tmp_path: Path) -> None:
    wave = tone(0.1)
    audio.write_wav(tmp_path / "a.wav", wave)
    samples, rate = soundfile.read(io.BytesIO((tmp_path / "a.wav").read_bytes()), dtype="int16")
    assert rate == 24000
    assert samples.astype("<i2").tobytes() == audio.to_pcm16(wave)
