"""qwen3_jax/text/nfc.py: NFC that is linear, whole and in pieces; and the limit of combining marks that makes it so."""

import itertools
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.messages import shorten
from qwen3_jax.text import nfc as module
from qwen3_jax.text.nfc import MARKS, SLICE, nfc, normalise, settle, slices

ALPHABET = (
    "ae. \u0301\u0316\u0344\u1100\u1161\u11a8\uac00\u0cc6\u0cc2\u0cd5\u0dd9\u0dcf\u0dca\u0bc6\u0bbe\u0f71\u0f72\u0f73\ufb2c\U0001d160今"
)
TEXTS = st.text(st.sampled_from(ALPHABET), max_size=40)


def run(length: int) -> str:
    """Combining marks in the order that costs most to put right."""
    return ("\u0301\u0316" * length)[:length]


@given(text=TEXTS, size=st.integers(1, 7))
@settings(deadline=None)
def test_slices_have_the_normal_form_of_the_whole(text: str, size: int) -> None:
    expected = unicodedata.normalize("NFC", text)
    with pytest.MonkeyPatch.context() as small:
        small.setattr(module, "SLICE", size)
        parts = list(slices(text))
        assert "".join(parts) == text and all(len(part) <= size + MARKS for part in parts)
        assert nfc(text) == expected


@given(text=TEXTS, cuts=st.lists(st.integers(0, 40), max_size=5))
@settings(deadline=None, max_examples=300)
def test_pieces_have_the_normal_form_of_the_whole(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    done, held = "", ""
    for begin, end in itertools.pairwise(edges):
        settled, held = settle(held, text[begin:end])
        done += settled
        assert len(held) <= MARKS + 1
    assert done + nfc(held) == unicodedata.normalize("NFC", text)


def test_what_composes_is_known_for_all_of_unicode() -> None:
    """A character that may compose with what precedes it, or be moved before it, must not begin a slice or a piece."""
    every = list(map(chr, range(sys.maxunicode + 1)))
    pairs = (unicodedata.decomposition(one).split() for one in every)
    seconds = {chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and pair[0][0] != "<"}
    moved = {one for one in every if unicodedata.combining(unicodedata.normalize("NFD", one)[0])}
    hangul = {*map(chr, range(0x1161, 0x1176)), *map(chr, range(0x11A8, 0x11C3))}
    joining = {one for one in every if module._joins(one)}
    assert seconds | moved | hangul <= joining
    assert len(joining) < 1200, "letters are not among them"


@pytest.mark.parametrize("mark", ["\u0301", "\u0316", "\u1161", "\u11a8", "\u0bbe", "\u0f73"])
def test_thirty_marks_in_a_row_are_taken_and_one_more_is_refused(mark: str) -> None:
    for before in ("", "a", "a" * (SLICE - 1), "\u1100" * (2 * SLICE - 10)):
        whole = before + mark * MARKS
        assert nfc(whole) == unicodedata.normalize("NFC", whole)
        done, held = "", ""
        for character in whole:
            settled, held = settle(held, character)
            done += settled
        assert done + nfc(held) == nfc(whole)
        with pytest.raises(ValueError, match="more than 30 combining marks in a row"):
            nfc(whole + mark)
        with pytest.raises(ValueError, match="more than 30 combining marks in a row"):
            settle(held, mark)


class Counting:
    """unicodedata, with the lengths that ``normalize`` is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def normalize(self, form: str, text: str) -> str:
        self.asked.append(len(text))
        return unicodedata.normalize(form, text)

    def __getattr__(self, name: str) -> object:
        return getattr(unicodedata, name)


def test_a_long_run_is_refused_before_it_is_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()
    monkeypatch.setattr(module, "unicodedata", counting)
    for text in (run(200_000), "a" + run(31), "ä" * 5000 + run(31) + "ä" * 5000):
        with pytest.raises(ValueError, match="in a row"):
            nfc(text)
        assert sum(counting.asked) <= 2 * SLICE + 2 * MARKS
        counting.asked.clear()
    with pytest.raises(ValueError, match="in a row"):
        settle("", run(31))
    assert not counting.asked


def test_work_grows_with_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each character is normalised once, in short slices; in pieces of one character, those that are held are looked at again."""
    counting = Counting()
    monkeypatch.setattr(module, "unicodedata", counting)
    text = ("a" + run(MARKS)) * 1000
    nfc(text)
    assert sum(counting.asked) == len(text) and max(counting.asked) <= SLICE + MARKS
    counting.asked.clear()
    held = ""
    for character in text:
        _, held = settle(held, character)
    assert sum(counting.asked) <= len(text)


def test_only_the_text_is_left() -> None:
    assert normalise("  e\u0301 \n") == "é"
    with pytest.raises(ValueError, match=r"' {80}... \(5000 characters\)' is empty") as refused:
        normalise(" " * 5000)
    assert len(str(refused.value)) < 300


def test_values_in_messages_are_cut() -> None:
    assert shorten("x" * 80) == "x" * 80
    assert shorten("x" * 81) == "x" * 80 + "... (81 characters)"
    assert shorten("x" * 9_000_000, 10) == "xxxxxxxxxx... (9000000 characters)"


def test_normalise_drops_a_byte_order_mark_and_refuses_half_a_surrogate_pair() -> None:
    assert normalise("\ufeff Café\n") == normalise("Cafe\u0301") == "Café"
    for half in ("\ud800", "\udce9"):
        with pytest.raises(ValueError, match=f"U\\+{ord(half):04X}, half of a surrogate pair, which is no character: decode it as UTF-8"):
            normalise(f"caf{half}")
    with pytest.raises(ValueError, match="is empty"):
        normalise("\ufeff \u3000")
