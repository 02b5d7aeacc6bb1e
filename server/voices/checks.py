"""What the server and ``voices add`` ask of a new voice: its recording (qwen3_jax/audio/recording.py), its transcript, its description.

``advise`` adds what the specification's 6.1 asks of a good clip; ``check_transcript`` refuses words that cannot be heard in it.
"""

import unicodedata

import numpy as np

from qwen3_jax.audio import recording
from qwen3_jax.audio.recording import Clip, Refusal
from qwen3_jax.messages import is_control
from qwen3_jax.text.nfc import nfc

BEST_SECONDS, BEST_RATE, BEST_BITS, BEST_NOISE_DB = (5.0, 10.0), 24_000, 16, 20.0
MAX_TRANSCRIPT = 2000  # characters
_TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})  # Unicode's classes of such characters
FASTEST, SLOWEST = 30.0, 2.0  # letters a second that anybody says; a character of CJK counts as three letters


def check(data: bytes, max_bytes: int) -> Clip:
    """All checks of a recording; but for its size they are those of shell and library (qwen3_jax/audio/recording.py).

    Raises:
        Refusal: the first rule that is broken.
    """
    if len(data) > max_bytes:
        raise Refusal("AUDIO_TOO_BIG", f"audio of more than {max_bytes} bytes is not taken; send a shorter clip", 413)
    return recording.check(recording.read(data))


def check_words(field: str, value: str, *, lines: bool = True) -> str:
    """What people write about a voice, trimmed; nothing in it acts on a terminal. Of invisible characters alone nothing is left.

    Args:
        field: its name, for the refusal.
        lines: whether it may have line breaks and tabs.

    Raises:
        Refusal: a control character, NUL among them, one that turns the direction of others, half of a surrogate pair, or U+FFFD.
    """
    if "\ufffd" in value:
        message = f"{field} has U+FFFD, which stands for bytes that are not UTF-8: send it in UTF-8"
        raise Refusal(f"{field.upper()}_INVALID", message, 400)
    bad = next((character for character in value if _acts(character) and not (lines and character in "\n\r\t")), None)
    if bad is not None:
        raise Refusal(f"{field.upper()}_INVALID", f"{field} has the control character U+{ord(bad):04X}: letters are taken; remove it", 400)
    words = value.removeprefix("\ufeff").strip()
    return words if any(character.isprintable() and not character.isspace() for character in words) else ""


def _acts(character: str) -> bool:
    return is_control(character) or unicodedata.bidirectional(character) in _TURNING


def check_transcript(transcript: str, seconds: float) -> str:
    """The transcript, trimmed and in NFC.

    Raises:
        Refusal: too long, empty, or it cannot be what is said in so many seconds.
    """
    if len(transcript) > MAX_TRANSCRIPT:
        raise Refusal(
            "TRANSCRIPT_TOO_LONG", f"transcript of {len(transcript)} characters: at most {MAX_TRANSCRIPT} are taken; write what is said"
        )
    try:
        words = nfc(check_words("transcript", transcript)).strip()
    except Refusal:
        raise
    except ValueError as error:
        raise Refusal("TRANSCRIPT_INVALID", f"transcript: {error}") from error
    if not words:
        raise Refusal("TRANSCRIPT_EMPTY", "transcript is empty: write exactly what is said, or leave it out for cloning of the timbre only")
    pace = sum(_letters(character) for character in words) / seconds
    if not SLOWEST <= pace <= FASTEST:
        raise Refusal(
            "TRANSCRIPT_MISFIT",
            f"transcript of {len(words)} characters for {seconds:.1f} s of audio ({pace:.1f} letters a second, {SLOWEST:.0f} to "
            f"{FASTEST:.0f} are possible): write exactly what is said, all of it and no more",
        )
    return words


def advise(clip: Clip) -> list[str]:
    """What the specification's 6.1 asks for and the clip has not; none of it is a reason to refuse."""
    advice = []
    if not BEST_SECONDS[0] <= clip.seconds <= BEST_SECONDS[1]:
        advice.append(f"{clip.seconds:.1f} s: {BEST_SECONDS[0]:.0f} to {BEST_SECONDS[1]:.0f} s are best")
    if clip.rate < BEST_RATE:
        advice.append(f"{clip.rate} Hz: {BEST_RATE} or more are best")
    if clip.bits == 0:
        advice.append("a lossy format: WAV or FLAC are best")
    elif clip.bits < BEST_BITS:
        advice.append(f"{clip.bits} bits a sample: {BEST_BITS} or more are best")
    above = _above_noise(clip)
    if above < BEST_NOISE_DB:
        advice.append(f"speech is {above:.0f} dB above the background: {BEST_NOISE_DB:.0f} or more are best")
    return advice


def _above_noise(clip: Clip) -> float:
    """dB between loud and quiet stretches of 20 ms (90th and 5th percentile)."""
    size = clip.rate // 50
    frames = clip.samples[: len(clip.samples) // size * size].reshape(-1, size).astype(np.float64)
    levels = 10 * np.log10(np.var(frames, axis=1) + 1e-12)  # a constant offset is no background
    return float(np.percentile(levels, 90) - np.percentile(levels, 5))


def _letters(character: str) -> int:
    if unicodedata.category(character)[0] not in "LN":
        return 0
    return 3 if unicodedata.east_asian_width(character) in "WF" else 1
