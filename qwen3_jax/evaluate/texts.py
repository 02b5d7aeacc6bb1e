"""Files of sentences, one a line; and the 100 that the project is judged on, which no training ever sees."""

from pathlib import Path

from qwen3_jax.text.files import read

HELD_OUT = Path(__file__).with_name("held_out.txt")
SENTENCES = "sentences.txt"  # beside 0000.wav, 0001.wav, ...: what they say, in that order


def read_sentences(path: Path) -> list[str]:
    """Lines of a file; empty ones and those that begin with # are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of sentences, one a line")
    lines = [line.strip() for line in read(path).splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"{path} holds no sentence: write one a line")
    return found


def held_out() -> list[str]:
    """The 100 held-out sentences in the package."""
    return read_sentences(HELD_OUT)


def wavs_and_sentences(folder: Path) -> tuple[list[Path], list[str]]:
    """The wavs of a folder by name, and what they say: ``sentences.txt``, or NAME.txt beside each NAME.wav.

    Raises:
        FileNotFoundError: no wav, or no text for one.
        ValueError: as many sentences as wavs are needed.
    """
    wavs = sorted(folder.glob("*.wav"))
    if not wavs:
        raise FileNotFoundError(f"{folder} holds no .wav file")
    if (folder / SENTENCES).is_file():
        texts = read_sentences(folder / SENTENCES)
    else:
        texts = [" ".join(read_sentences(wav.with_suffix(".txt"))) for wav in wavs]
    if len(texts) != len(wavs):
        raise ValueError(f"{folder}: {len(wavs)} wavs but {len(texts)} lines in {SENTENCES}; each wav, by name, needs its line")
    return wavs, texts
