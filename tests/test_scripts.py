"""Texts in letters that no language of the model's is written with: refused alike by library, shell and server; a quotation is not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3_jax.text.languages import NAMES
from qwen3_jax.text.parts import parts_of
from qwen3_jax.text.scripts import Letters, check_letters
from tests.fake_engine import LIMIT
from tests.fake_service import FakeService
from tests.fake_tts import FakeTTS

ENGLISH, ALL = ("english",), tuple(NAMES)
FOREIGN = {
    "\u4f60\u597d": "2 of the text's 2 letters are Chinese characters, and this model speaks English: .* load .*, which speaks Chinese",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002How are you?": None,
    "\u3053\u3093\u306b\u3061\u306f": "5 of the text's 5 letters are Japanese kana.* which speaks Japanese",
    "\uff8a\uff9b\uff70": "Japanese kana",
    "\uc548\ub155\ud558\uc138\uc694": "5 of the text's 5 letters are Korean Hangul.* which speaks Korean",
    "\u1112\u1161\u11ab": "Korean Hangul",
    "\u041f\u0440\u0438\u0432\u0435\u0442, 25!": "6 of the text's 6 letters are Cyrillic letters.* which speaks Russian",
    "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1": "8 of the text's 8 letters are Greek letters, .*: write the text in that$",
    "\u0645\u0631\u062d\u0628\u0627": "5 of the text's 5 letters are Arabic letters",
    "\u0928\u092e\u0938\u094d\u0924\u0947": "4 of the text's 4 letters are Devanagari letters",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35": "Thai letters",
    "<speak>\u4f60\u597d\u4e16\u754c</speak>": "4 of the text's 4 letters are Chinese characters",
    "\u4f60\u597d\u4e16\u754c https://example.com/a/long/address": "4 of the text's 4 letters are Chinese characters",
    "\u4f60\u597d ok \u4e16\u754c": "4 of the text's 6 letters are Chinese characters",
    "The word \u4f60\u597d means hello.": None,
    "\u4f60\u597d means hello.": None,
    "Caf\u00e9, na\u00efve, Stra\u00dfe, \uff37\uff49\uff44\uff45, \U0001d400\u2460, \u00aa, \u0130stanbul.": None,
    "\u03b1, \u03b2 and 5 \u03bc\u03a9": None,
    "\u03b1": None,
    "100 %": None,
    "\U0001f600": None,
    "Hello.": None,
}


@pytest.mark.parametrize("text", FOREIGN)
def test_most_letters_must_be_of_the_models_languages(text: str) -> None:
    if (said := FOREIGN[text]) is None:
        check_letters(text, ENGLISH)
    else:
        with pytest.raises(ValueError, match=said):
            check_letters(text, ENGLISH)


WRITTEN = (
    "\u4f60\u597d",
    "\u3053\u3093\u306b\u3061\u306f",
    "\uc548\ub155",
    "\u041f\u0440\u0438\u0432\u0435\u0442",
    "\u3005",
    "\u3105\u3106\u3107",
)


def test_languages_have_their_scripts() -> None:
    for text in WRITTEN:
        check_letters(text, ALL)
    check_letters("\u6771\u4eac", ("Japanese",))
    with pytest.raises(ValueError, match="this model speaks English, German: write the text in one of these, or load"):
        check_letters("\u6771\u4eac", ("German", "English"))
    with pytest.raises(ValueError, match="Japanese kana"):
        check_letters("\u3053\u3093\u306b\u3061\u306f", ("chinese",))
    for unknown in ((), ("english", "hindi")):
        check_letters("\u0928\u092e\u0938\u094d\u0924\u0947", unknown)


def test_letters_are_counted_as_they_come() -> None:
    letters = Letters(ENGLISH)
    assert letters.mostly_foreign("\u4f60\u597d") and not letters.mostly_foreign("\u4f60\u597d is hello")
    letters.add("Hello. ")
    assert not letters.mostly_foreign("\u4f60\u597d")
    letters.add("\u4f60\u597d\u4e16\u754c\u4f60\u597d")
    assert letters.mostly_foreign() and not letters.mostly_foreign("words")
    with pytest.raises(ValueError, match="6 of the text's 11 letters"):
        letters.check()


@pytest.mark.parametrize("normalize", [False, True])
def test_a_text_is_looked_at_before_its_first_part(normalize: bool) -> None:
    text = "A hundred characters of English come first, so that they would be a part, as you see. " + "\u4f60\u597d\u4e16\u754c\u3002" * 40
    with pytest.raises(ValueError, match="160 of the text's 2"):
        next(parts_of(text, "auto", normalize=normalize, languages=ENGLISH))


def test_library_and_service_refuse(checkpoint: Callable[[str], Path]) -> None:
    service = FakeService(FakeTTS())
    with service, pytest.raises(ValueError, match="Chinese characters, and this model speaks English, German"):
        service.speak("\u4f60\u597d\u4e16\u754c")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_in_pieces_nothing_is_heard_of_a_text_that_is_refused_and_a_quotation_waits(size: int) -> None:
    service = FakeService(FakeTTS())
    with service:
        live = service.open(normalize=False)
        text = "\u4f60\u597d\uff0c\u4e16\u754c\u3002 " * 3
        for start in range(0, len(text), size):
            live.write(text[start : start + size])
        with pytest.raises(ValueError, match="12 of the text's 12 letters are Chinese characters"):
            live.finish()
        assert list(live) == []
        live = service.open(normalize=False)
        text = "\u4f60\u597d, that is hello, and \u4e16\u754c is the world."
        for start in range(0, len(text), size):
            live.write(text[start : start + size])
        live.finish()
        assert sum(map(len, live)) == 4 * (len(text) + 1)


def test_the_shell_refuses_before_it_loads(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qwen3_jax", "say", "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "-o", str(tmp_path / "a.wav")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * LIMIT, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 2 and done.stderr.startswith("error: 4 of the text's 4 letters are Chinese characters, and this model speaks")
    assert "loading" not in done.stderr and not (tmp_path / "a.wav").exists()
