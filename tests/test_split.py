"""Parts of texts, whole or in pieces; and prefixes whose tokens are settled, with the real vocabulary and a byte-level one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.model.config import ModelConfig
from qwen3_jax.model.config_values import read
from qwen3_jax.text.prompt import CLOSING, ROLE
from qwen3_jax.text.split import LEAST, MOST, Splitter, settled, split
from qwen3_jax.text.tokenizer import Tokenizer
from tests.qwen_vocabulary import write_folder

STORY = (
    "Mr. Smith paid $3.50 to Dr. Jones, who had waited since half past nine in the morning. He left! \"Really?\" she asked, and "
    "nobody answered her for a while. Then the door opened, slowly, as such doors do, and the e.g. quite unexpected guest came in.\n"
    "A new paragraph follows."
)  # fmt: skip


def test_sentences_are_packed_and_abbreviations_end_none() -> None:
    assert split(STORY, "English") == [
        "Mr. Smith paid $3.50 to Dr. Jones, who had waited since half past nine in the morning.",
        "He left! \"Really?\" she asked, and nobody answered her for a while. Then the door opened, slowly, as such doors do, and the "
        "e.g. quite unexpected guest came in.",
        "A new paragraph follows.",
    ]  # fmt: skip
    assert split("Hi. How are you?", "auto") == ["Hi. How are you?"]
    assert split("  ", "english") == []


def test_scripts_without_spaces() -> None:
    text = "今日はとても良い天気ですね。" * 12
    parts = split(text, "Japanese")
    assert "".join(parts) == text and len(parts) == 2
    assert all(part.endswith("。") and LEAST <= len(part) <= MOST for part in parts)


def test_endless_sentences_are_cut_at_a_comma_a_space_or_anywhere() -> None:
    commas = split("one two, three " * 40, "english")
    assert all(part.endswith(",") for part in commas[:-1]) and max(map(len, commas)) <= MOST
    spaces = split("word " * 100, "english")
    assert all(part.endswith("word") for part in spaces)
    assert [len(part) for part in split("x" * 500, "english")] == [MOST, MOST, 20]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40)), st.sampled_from([STORY, STORY * 3, "今日は良い天気。" * 40, "one two, three " * 40]))
def test_pieces_make_the_same_parts(cuts: list[int], text: str) -> None:
    splitter, at, parts = Splitter("english"), 0, []
    for cut in cuts:
        parts += splitter.feed(text[at : at + cut])
        at += cut
    parts += splitter.feed(text[at:]) + splitter.finish()
    assert parts == split(text, "english")


@pytest.fixture(scope="module")
def tokenizers(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    folder = checkpoint("base")
    config = read(ModelConfig, folder / "config.json")
    real = read(ModelConfig, Path(__file__).parent / "reference" / "0.6B-Base.config.json")
    return [Tokenizer.from_folder(folder, config), Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("vocabulary")), real)]


PIECES = [
    "word",
    "it's",
    "I",
    " ",
    "  ",
    "\n",
    ".",
    ",",
    "...",
    "3",
    "14",
    "é",
    "e\u0301",
    "\u0301",
    "今日",
    "は",
    "。",
    "?!",
    "(",
    ")",
    '"',
    "-",
    "한",
    "ᄒ",
    "ᅡ",
    "🙂",
    "$",
]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=14), st.lists(st.sampled_from(PIECES), max_size=6))
def test_settled_tokens_stay(tokenizers: list[Tokenizer], before: list[str], after: list[str]) -> None:
    start = "".join(before).lstrip()
    ready = settled(start)
    if ready and start[:ready].strip():
        for tokenizer in tokenizers:
            ids = tokenizer.assistant(start[:ready])[ROLE:-CLOSING].tolist()
            whole = tokenizer.assistant(start + "".join(after))[ROLE:-CLOSING].tolist()
            assert whole[: len(ids)] == ids


def test_settled_goes_on_with_the_text() -> None:
    assert [settled("Hello, dear world"[:length]) for length in (5, 6, 7, 8, 11, 12, 17)] == [0, 5, 6, 6, 6, 11, 11]
