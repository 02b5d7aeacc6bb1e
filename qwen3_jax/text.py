"""Text -> token ids of a whole chat turn, by the checkpoint's own byte-level BPE (Qwen2's).

Files read, in this order: ``tokenizer.json``, or ``vocab.json`` + ``merges.txt`` with the special tokens of
``tokenizer_config.json``. Pre-tokenisation and normalisation are those of transformers' Qwen2Tokenizer
(models/qwen2/tokenization_qwen2.py); the turns are those of `qwen-tts` 0.1.1, inference/qwen3_tts_model.py.
"""

import json
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from qwen3_jax.config import ModelConfig
from qwen3_jax.nfc import normalise
from qwen3_jax.shapes import NpInt

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


class Tokenizer:
    """Turns of text -> ids, checked against the ids that ``config.json`` states."""

    def __init__(self, inner: tokenizers.Tokenizer, config: ModelConfig) -> None:
        self._inner = inner
        self._special = sorted(token.content for token in inner.get_added_tokens_decoder().values() if token.special)
        for turn, first in (("user", None), ("assistant", config.assistant_token_id)):
            ids = self._turn(turn, "a")
            if ids[0] != config.im_start_token_id or ids[-2] != config.im_end_token_id or first not in (None, ids[1]) or len(ids) < 6:
                raise ValueError(
                    f"the tokenizer does not fit config.json: a turn of {turn} becomes {ids}, expected it to start with "
                    f"{config.im_start_token_id} and {config.assistant_token_id} and to end with {config.im_end_token_id} and a newline"
                )

    @classmethod
    def from_folder(cls, folder: Path, config: ModelConfig) -> "Tokenizer":
        """Read a checkpoint's tokenizer.

        Raises:
            FileNotFoundError: the folder has none; names the files that are wanted.
            ValueError: it does not produce the ids that ``config`` states.
        """
        if (folder / "tokenizer.json").is_file():
            return cls(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), config)
        if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
            raise FileNotFoundError(
                f"{folder} has no tokenizer, so it cannot read text: copy vocab.json, merges.txt and tokenizer_config.json "
                "(or tokenizer.json) of the published checkpoint into it"
            )
        inner = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        inner.normalizer = normalizers.NFC()
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        inner.decoder = decoders.ByteLevel()
        added = folder / "tokenizer_config.json"
        if added.is_file():
            table = json.loads(added.read_text("utf-8")).get("added_tokens_decoder", {})
            for _, token in sorted(table.items(), key=lambda item: int(item[0])):
                kind = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if name in token}
                inner.add_special_tokens([AddedToken(token["content"], **kind)]) if token.get("special") else inner.add_tokens(
                    [AddedToken(token["content"], **kind)]
                )
        return cls(inner, config)

    def assistant(self, text: str) -> NpInt["T"]:
        """The text to be spoken, followed by the opening of the turn that speaks it."""
        return np.array([*self._turn("assistant", self._checked(text)), *self._encode("<|im_start|>assistant\n")], np.int32)

    def reference(self, transcript: str) -> NpInt["T"]:
        """The transcript of a reference recording."""
        return np.array(self._turn("assistant", self._checked(transcript)), np.int32)

    def instruction(self, instruct: str) -> NpInt["T"]:
        """How to speak, in words."""
        return np.array(self._turn("user", self._checked(instruct)), np.int32)

    def pieces(self, ids: NpInt["T"]) -> list[str]:
        """What each id stands for, as the byte-level vocabulary writes it (a space is \u0120)."""
        return [self._inner.id_to_token(int(number)) or "" for number in ids]

    def _turn(self, role: str, text: str) -> list[int]:
        return self._encode(f"<|im_start|>{role}\n{text}<|im_end|>\n")

    def _encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def _checked(self, text: str) -> str:
        text = normalise(text)
        for token in self._special:
            if token in text:
                raise ValueError(f"the text contains {token!r}, which is reserved for the model's own use: remove it")
        return text
