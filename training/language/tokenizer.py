"""Sentences -> ``tokenizer.json``: a byte-level BPE of about 1500 pieces, of Qwen's form, for a small model of our own.

    python -m training.language.tokenizer SENTENCES OUT/tokenizer.json

Normalisation and pre-tokenisation are Qwen's (qwen3_jax/text/tokenizer.py), so any text can be read; the 256 bytes come first, then the
merges, then "assistant" and the special tokens. ``token_ids`` is what a ``config.json`` has to say about it.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qwen3_jax.evaluate.texts import read_sentences
from qwen3_jax.text.tokenizer_files import PATTERN
from training.corpus.sentences import training

ROLE, SPECIAL = "assistant", ("<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_bos>", "<tts_eos>")
_FIELDS = ("im_start_token_id", "im_end_token_id", "tts_pad_token_id", "tts_bos_token_id", "tts_eos_token_id")
PIECES = 1500


def train(texts: Iterable[str], pieces: int = PIECES) -> Tokenizer:
    """A tokenizer of ``pieces`` pieces in all, special ones included.

    Raises:
        ValueError: too few pieces to hold the bytes and the special tokens, or too little text to make so many.
    """
    fixed = 256 + 1 + len(SPECIAL)
    if pieces <= fixed:
        raise ValueError(f"{pieces} pieces: {fixed} are bytes and special tokens, so ask for more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=pieces - 1 - len(SPECIAL), initial_alphabet=alphabet, show_progress=False, special_tokens=[])
    tokenizer.train_from_iterator(texts, trainer)
    made = tokenizer.get_vocab_size()
    if made < pieces - 1 - len(SPECIAL):
        raise ValueError(f"the text yields {made} pieces only: give more text, or ask for fewer pieces than {pieces}")
    # As a whole word only, so that "assistants" is read as any other word.
    tokenizer.add_tokens([AddedToken(ROLE, normalized=False, single_word=True)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The fields of ``config.json`` that name tokens: ``assistant_token_id``, ``im_start_token_id``, ... (text_vocab_size is
    ``tokenizer.get_vocab_size()``).

    Raises:
        ValueError: not a tokenizer of this form.
    """
    found = {}
    for field, token in zip(("assistant_token_id", *_FIELDS), (ROLE, *SPECIAL), strict=True):
        number = tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"the tokenizer has no token {token!r}: make one with python -m training.language.tokenizer")
        found[field] = number
    return found


app = typer.Typer(add_completion=False)


@app.command()
def main(
    sentences: Annotated[Path, typer.Argument(help="A file of sentences, one a line, or a folder of text as for the corpus.")],
    out: Annotated[Path, typer.Argument(help="The tokenizer.json to write.")],
    pieces: Annotated[int, typer.Option(help="How many in all.")] = PIECES,
) -> None:
    """Train a tokenizer."""
    texts = [sentence.text for sentence in training(sentences)] if sentences.is_dir() else read_sentences(sentences)
    tokenizer = train(texts, pieces)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.partial")
    tokenizer.save(str(temporary))
    os.replace(temporary, out)
    length = sum(len(tokenizer.encode(text).ids) for text in texts)
    characters = sum(map(len, texts))
    Console(stderr=True).print(
        f"{out}: {tokenizer.get_vocab_size()} pieces, {characters / length:.2f} characters each; {token_ids(tokenizer)}", soft_wrap=True
    )


if __name__ == "__main__":
    try:
        app(prog_name="python -m training.language.tokenizer")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
