"""Text -> token ids of a whole chat turn, by the checkpoint's own byte-level BPE (Qwen2's; tokenizer_files.py reads it).

The turns are those of `qwen-tts` 0.1.1, inference/qwen3_tts_model.py.
"""

from pathlib import Path

import numpy as np
import tokenizers

from qwen3_jax.model.config import ModelConfig
from qwen3_jax.shapes import I32
from qwen3_jax.text.nfc import normalise
from qwen3_jax.text.tokenizer_files import TOKENIZER_FILES, read_tokenizer

_CONTROL = {"im_start_token_id": "<|im_start|>", "im_end_token_id": "<|im_end|>"}  # written in turns


class Tokenizer:
    """Turns of text -> ids, checked against the ids that ``config.json`` states."""

    def __init__(self, inner: tokenizers.Tokenizer, config: ModelConfig) -> None:
        self._inner = inner
        for field, token in _CONTROL.items():
            made, stated = inner.token_to_id(token), getattr(config, field)
            if made is None:
                raise ValueError(
                    f"the tokenizer has no token {token!r} (config.json: {field} = {stated}), in none of {', '.join(TOKENIZER_FILES)}; "
                    "copy all of these that the published checkpoint has"
                )
            if made != stated:
                raise ValueError(
                    f"the tokenizer does not fit config.json: {token!r} has the id {made}, and {field} is {stated}; "
                    "take both from one checkpoint"
                )
        size = inner.get_vocab_size()
        if size > config.talker_config.text_vocab_size:
            raise ValueError(
                f"the tokenizer does not fit config.json: it has {size} tokens, and text_vocab_size is "
                f"{config.talker_config.text_vocab_size}; take both from one checkpoint"
            )
        control = {getattr(config, name) for name in (*_CONTROL, "tts_pad_token_id", "tts_bos_token_id", "tts_eos_token_id")}
        added = inner.get_added_tokens_decoder().items()
        self._special = sorted(token.content for number, token in added if token.special or number in control)
        for turn, first in (("user", None), ("assistant", config.assistant_token_id)):
            ids = self._turn(turn, "a")
            if ids[0] != config.im_start_token_id or ids[-2] != config.im_end_token_id or first not in (None, ids[1]) or len(ids) < 6:
                raise ValueError(
                    f"the tokenizer does not fit config.json: a turn of {turn} becomes {ids}, expected it to start with "
                    f"{config.im_start_token_id} and {config.assistant_token_id} and to end with {config.im_end_token_id} and a newline"
                )

    @classmethod
    def from_folder(cls, folder: Path, config: ModelConfig) -> "Tokenizer":
        """Read a checkpoint's tokenizer, in any form that `tokenizer_files` knows.

        Raises:
            FileNotFoundError: the folder has none; names the files that are wanted.
            ValueError: a file that cannot be read, or ids that are not those that ``config`` states.
        """
        return cls(read_tokenizer(folder), config)

    def assistant(self, text: str) -> I32[np.ndarray, " T"]:
        """The text to be spoken, followed by the opening of the turn that speaks it."""
        return np.array([*self._turn("assistant", self.check(text)), *self._encode("<|im_start|>assistant\n")], np.int32)

    def reference(self, transcript: str) -> I32[np.ndarray, " T"]:
        """The transcript of a reference recording."""
        return np.array(self._turn("assistant", self.check(transcript)), np.int32)

    def instruction(self, instruct: str) -> I32[np.ndarray, " T"]:
        """How to speak, in words."""
        return np.array(self._turn("user", self.check(instruct)), np.int32)

    def pieces(self, ids: I32[np.ndarray, " T"]) -> list[str]:
        """What each id stands for, as the byte-level vocabulary writes it (a space is \u0120)."""
        return [self._inner.id_to_token(int(number)) or "" for number in ids]

    def _turn(self, role: str, text: str) -> list[int]:
        return self._encode(f"<|im_start|>{role}\n{text}<|im_end|>\n")

    def _encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def check(self, text: str) -> str:
        """The text in NFC. Raises ValueError if it is empty, has too many combining marks in a row, or a token of the model's own."""
        text = normalise(text)
        for token in self._special:
            if token in text:
                raise ValueError(f"the text contains {token!r}, which is reserved for the model's own use: remove it")
        return text
