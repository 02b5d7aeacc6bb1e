"""A checkpoint's tokenizer files, in each form in which they are published -> tokenizers.Tokenizer (Qwen2's byte-level BPE).

    tokenizer.json                     whole; what it was saved with for batches (truncation, padding) is switched off
    vocab.json + merges.txt            else; pre-tokenisation and normalisation as in transformers' models/qwen2/tokenization_qwen2.py
    tokenizer_config.json              added tokens: added_tokens_decoder (transformers 4), extra_special_tokens (5)
    added_tokens.json                  added tokens: {token: id}
    special_tokens_map.json            which of them are special

Added tokens may stand in any of these files. Each gets the id that the files state; one without an id gets the next free one.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
WHOLE, VOCABULARY, MERGES, CONFIG, ADDED, SPECIAL = TOKENIZER_FILES
_LISTS = ("extra_special_tokens", "additional_special_tokens")  # the first as a list, or by name
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Read whichever form is there.

    Raises:
        FileNotFoundError: the folder has none; names the files that are needed.
        ValueError: a file that cannot be read, or files that contradict each other; names the file and the token.
    """
    flags, ids = _added_tokens(folder)
    if (folder / WHOLE).is_file():
        inner = _whole(folder / WHOLE, ids)
    elif (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        inner = _byte_pairs(folder, ids)
    else:
        raise FileNotFoundError(
            f"{folder} has no tokenizer, so it cannot read text: copy vocab.json, merges.txt and tokenizer_config.json "
            "(or tokenizer.json) of the published checkpoint into it"
        )
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    missing = [content for content in flags if content not in known]
    for content in sorted(missing, key=lambda content: (content not in ids, ids.get(content, 0))):
        token = AddedToken(content, **({"normalized": not flags[content].get("special", False)} | flags[content]))
        if flags[content].get("special", False):
            inner.add_special_tokens([token])
        else:
            inner.add_tokens([token])
    for content, number in ids.items():
        if inner.token_to_id(content) != number or inner.id_to_token(number) != content:
            raise ValueError(
                f"the tokenizer files in {folder} contradict each other: token {content!r} has the id {number} in {CONFIG} or {ADDED}; "
                f"the vocabulary has {inner.token_to_id(content)} for it, and {inner.id_to_token(number)!r} for {number}; take all of them "
                "from one checkpoint"
            )
    return inner


def _added_tokens(folder: Path) -> tuple[dict[str, dict[str, bool]], dict[str, int]]:
    """Of each added token its flags, and its id where a file states one."""
    config, added, special = (_object(folder / name) for name in (CONFIG, ADDED, SPECIAL))
    flags: dict[str, dict[str, bool]] = {}
    ids: dict[str, int] = {}

    def add(token: Any, **more: bool) -> str | None:
        content = token.get("content") if isinstance(token, dict) else token
        if not isinstance(content, str) or not content:
            return None
        stated = {name: token[name] for name in _FLAGS if isinstance(token.get(name), bool)} if isinstance(token, dict) else {}
        flags[content] = stated | flags.get(content, {}) | more
        return content

    for number, token in _mapping(config, "added_tokens_decoder", CONFIG).items():
        if (content := add(token)) is not None:
            ids[content] = _id(number, content, CONFIG)
    for content, number in added.items():
        ids.setdefault(content, _id(number, content, ADDED))
        add(content)
    for values in (config, special):
        for name in _LISTS:
            listed = values.get(name) or []
            if not isinstance(listed, (list, dict, str)):
                raise ValueError(f"{CONFIG}: {name} is a {type(listed).__name__}: a list of tokens is needed; fetch the file again")
            for token in listed.values() if isinstance(listed, dict) else [listed] if isinstance(listed, str) else listed:
                add(token, special=True)
        for name in _NAMED:
            add(values.get(name), special=True)
    return flags, ids


def _whole(file: Path, ids: dict[str, int]) -> tokenizers.Tokenizer:
    data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        inner = tokenizers.Tokenizer.from_buffer(data)
        if any(inner.token_to_id(content) is None for content in ids):  # a token keeps its id only as an entry of the vocabulary
            whole = json.loads(data)
            vocabulary = whole["model"]["vocab"]
            whole["model"]["vocab"] = {content: number for content, number in ids.items() if content not in vocabulary} | vocabulary
            inner = tokenizers.Tokenizer.from_str(json.dumps(whole))
    except Exception as error:  # tokenizers raises plain Exception for whatever is wrong with a file
        raise ValueError(
            f"{file} is not a tokenizer ({error}): fetch it again, or remove it if {VOCABULARY} and {MERGES} are there"
        ) from error
    inner.no_truncation()
    inner.no_padding()
    return inner


def _byte_pairs(folder: Path, ids: dict[str, int]) -> tokenizers.Tokenizer:
    vocabulary = _object(folder / VOCABULARY)
    try:
        lines = (folder / MERGES).read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / MERGES} is not UTF-8 ({error}): fetch it again") from error
    pairs = [tuple(line.split()) for number, line in enumerate(lines) if line.strip() and not (number == 0 and line.startswith("#version"))]
    odd = next((pair for pair in pairs if len(pair) != 2), None)
    if odd is not None:
        raise ValueError(f"{folder / MERGES} has the line {' '.join(odd)!r}: two parts of a token are needed; fetch it again")
    try:
        model = models.BPE(ids | vocabulary, pairs)  # type: ignore[arg-type]  # pairs
    except Exception as error:  # see _whole
        raise ValueError(f"{folder / VOCABULARY} and {MERGES} do not fit each other ({error}): fetch both again") from error
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def _object(file: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a {type(values).__name__}: a JSON object is needed; fetch it again")
    return values


def _mapping(values: dict[str, Any], name: str, file: str) -> dict[str, Any]:
    found = values.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{file}: {name} is a {type(found).__name__}: an object is needed; fetch the file again")
    return found


def _id(number: Any, content: str, file: str) -> int:
    if isinstance(number, bool) or not (isinstance(number, int) or (isinstance(number, str) and number.isdecimal())):
        raise ValueError(f"{file}: the id of token {content!r} is {number!r}: a whole number is needed; fetch the file again")
    return int(number)
