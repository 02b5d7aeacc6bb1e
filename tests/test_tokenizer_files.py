"""Tokenizer files in each form in which they are published: the same ids from all of them, or the true reason why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Inner

from qwen3_jax.model.config import ModelConfig
from qwen3_jax.model.config_values import parse
from qwen3_jax.testing import byte_tokenizer, tiny_config
from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.text.tokenizer_files import read_tokenizer

CONFIG = parse(ModelConfig, tiny_config())
TEXT = "Hello, 12 wörlds; it's a good deal longer than eight tokens."
SPECIAL = {"<|im_start|>": 257, "<|im_end|>": 258, "<tts_pad>": 259, "<tts_bos>": 260, "<tts_eos>": 261}
ADDED = {"assistant": 256, **SPECIAL}


def whole() -> dict[str, Any]:
    """tokenizer.json, as an object."""
    loaded: dict[str, Any] = json.loads(byte_tokenizer().to_str())
    return loaded


def bare() -> dict[str, Any]:
    """The same without added tokens."""
    return whole() | {"added_tokens": []}


def decoder() -> dict[str, Any]:
    """``added_tokens_decoder`` as transformers 4 writes it."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {str(number): {"content": token, **flags, "special": token in SPECIAL} for token, number in ADDED.items()}


def vocabulary(folder: Path, *, merges: str = "#version: 0.2\n") -> None:
    (folder / "vocab.json").write_text(json.dumps(bare()["model"]["vocab"]), "utf-8")
    (folder / "merges.txt").write_bytes(merges.encode())


def write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")


def published(folder: Path) -> None:
    vocabulary(folder)
    write(folder, tokenizer_config={"added_tokens_decoder": decoder(), "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})


def slow_4(folder: Path) -> None:
    published(folder)
    write(folder, added_tokens=ADDED, special_tokens_map={"additional_special_tokens": ["<|im_start|>", {"content": "<|im_end|>"}]})


def fast_4(folder: Path) -> None:
    slow_4(folder)
    write(folder, tokenizer=whole())


def transformers_5(folder: Path) -> None:
    write(folder, tokenizer=whole(), tokenizer_config={"backend": "tokenizers", "extra_special_tokens": list(SPECIAL)})


def batches(folder: Path) -> None:
    inner = byte_tokenizer()
    inner.enable_truncation(8)
    inner.enable_padding(length=64)
    inner.save(str(folder / "tokenizer.json"))


def only_added_tokens(folder: Path) -> None:
    vocabulary(folder)
    write(folder, added_tokens=ADDED)


def only_added_tokens_beside_whole(folder: Path) -> None:
    write(folder, tokenizer=bare(), added_tokens=ADDED)


def extra_special_tokens(folder: Path) -> None:
    write(folder, tokenizer=bare(), tokenizer_config={"extra_special_tokens": list(SPECIAL)}, added_tokens={"assistant": 256})


def named_special_tokens(folder: Path) -> None:
    vocabulary(folder)
    named = {"start": "<|im_start|>", "pad": {"content": "<tts_pad>", "special": True}}
    config = {"extra_special_tokens": named, "eos_token": "<|im_end|>", "added_tokens_decoder": decoder()}
    write(folder, tokenizer_config=config)


def ids_with_a_gap(folder: Path) -> None:
    """No token has the ids in between, so counting on would give the later ones wrong ids."""
    vocabulary(folder)
    write(folder, added_tokens={token: number for token, number in reversed(ADDED.items()) if token != "<tts_pad>"})


def carriage_returns(folder: Path) -> None:
    vocabulary(folder, merges="\ufeff#version: 0.2\r\nH e\r\n")
    vocab = json.loads((folder / "vocab.json").read_text("utf-8")) | {"He": 300}
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8-sig")
    write(folder, added_tokens=ADDED)


FORMS = [
    published, slow_4, fast_4, transformers_5, batches, only_added_tokens, only_added_tokens_beside_whole, extra_special_tokens,
    named_special_tokens, ids_with_a_gap,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_ids(tmp_path: Path, form: Callable[[Path], None]) -> None:
    form(tmp_path)
    reader, expected = Tokenizer.from_folder(tmp_path, CONFIG), Tokenizer(byte_tokenizer(), CONFIG)
    assert reader.assistant(TEXT).tolist() == expected.assistant(TEXT).tolist()
    assert reader.assistant("a" * 200).tolist() == expected.assistant("a" * 200).tolist()
    for token in ("<|im_end|>", "<tts_eos>"):
        with pytest.raises(ValueError, match="reserved"):
            reader.assistant(f"Hello {token}")


def test_merges_with_spaces_at_line_ends_and_a_special_token_that_is_no_list(tmp_path: Path) -> None:
    vocabulary(tmp_path, merges="#version: 0.2\nH e \n\n")
    vocab = json.loads((tmp_path / "vocab.json").read_text("utf-8")) | {"He": 300}
    flags = {"content": "<x>", "special": None}
    config = {"extra_special_tokens": "<|im_start|>", "added_tokens_decoder": {"301": flags}}
    write(tmp_path, vocab=vocab, added_tokens=ADDED, tokenizer_config=config)
    reader = Tokenizer.from_folder(tmp_path, CONFIG)
    assert 300 in reader.assistant("Hello a")
    (tmp_path / "merges.txt").write_bytes(b"\xe9 a\n")
    with pytest.raises(ValueError, match=r"merges.txt is not UTF-8"):
        read_tokenizer(tmp_path)


def test_lines_that_end_as_windows_has_them(tmp_path: Path) -> None:
    carriage_returns(tmp_path)
    assert 300 in Tokenizer.from_folder(tmp_path, CONFIG).assistant("Hello")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer": bare()}, r"no token '<\|im_start\|>' \(config.json: im_start_token_id = 257\).*added_tokens.json"),
        ({"tokenizer": whole(), "added_tokens": ADDED | {"<tts_pad>": 300}}, r"contradict.*'<tts_pad>' has the id 300.*259"),
        ({"tokenizer": bare(), "added_tokens": {token: number + 1 for token, number in ADDED.items()}}, "does not fit.*258.*257"),
        ({"tokenizer": {"version": "1.0"}}, "tokenizer.json is not a tokenizer"),
        ({"tokenizer": whole(), "tokenizer_config": []}, "tokenizer_config.json holds a list"),
        ({"tokenizer": whole(), "tokenizer_config": {"extra_special_tokens": 5}}, "extra_special_tokens is a int: a list"),
        ({"tokenizer": bare(), "added_tokens": ADDED | {"zz": 257}}, r"contradict.*('zz'|im_start).*257"),
        ({"tokenizer": bare(), "added_tokens": ADDED | {"zz": 300.7}}, "id of token 'zz' is 300.7"),
        ({"tokenizer": whole(), "tokenizer_config": {"added_tokens_decoder": {"one": {"content": "<x>"}}}}, "id of token '<x>' is 'one'"),
    ],
)  # fmt: skip
def test_the_true_reason_is_said(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_folder(tmp_path, CONFIG)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    vocabulary(tmp_path)
    write(tmp_path, added_tokens=ADDED)
    cut = (tmp_path / "vocab.json").read_bytes()
    (tmp_path / "vocab.json").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(ValueError, match="vocab.json is not JSON"):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_bytes(cut)
    (tmp_path / "merges.txt").write_text("x yz\n")
    with pytest.raises(ValueError, match=r"vocab.json and merges.txt do not fit each other"):
        read_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(ValueError, match=r"merges.txt has the line 'a b c': two parts"):
        read_tokenizer(tmp_path)


def test_more_tokens_than_the_model_has(tmp_path: Path) -> None:
    inner = Inner.from_str(json.dumps(whole()))
    inner.add_tokens([f"<extra {number}>" for number in range(100)])
    with pytest.raises(ValueError, match="362 tokens, and text_vocab_size is 320"):
        Tokenizer(inner, CONFIG)
