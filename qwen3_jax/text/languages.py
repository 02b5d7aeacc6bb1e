"""What people call a language -> the name by which checkpoints know it: English names, ISO 639 codes, BCP 47 tags."""

NAMES = {
    "chinese": ("zh", "zho", "chi", "cmn"), "english": ("en", "eng"), "german": ("de", "deu", "ger"), "italian": ("it", "ita"),
    "portuguese": ("pt", "por"), "spanish": ("es", "spa"), "japanese": ("ja", "jpn"), "korean": ("ko", "kor"),
    "french": ("fr", "fra", "fre"), "russian": ("ru", "rus"),
}  # fmt: skip
_CODES = {code: name for name, codes in NAMES.items() for code in codes}
MULTILINGUAL = "Qwen/Qwen3-TTS-12Hz-0.6B-Base"  # speaks all of them


def language_name(given: str) -> str:
    """``en``, ``en-US``, ``eng``, ``English`` -> ``english``. What is no code stays, in lower case: checkpoints have names of their own."""
    folded = given.strip().lower()
    return _CODES.get(folded.replace("_", "-").partition("-")[0], folded)


def spoken_elsewhere(given: str) -> str:
    """The end of a refusal: names a checkpoint that speaks the language; empty if none is known."""
    name = language_name(given)
    return f"; {MULTILINGUAL} speaks {name.capitalize()}" if name in NAMES else ""
