"""Text -> ids: equal to transformers' Qwen2 tokenizer on the real vocabulary; bad text is refused by name."""

import json
from pathlib import Path

import pytest

from qwen3_jax.model.config import ModelConfig
from qwen3_jax.model.config_values import parse
from qwen3_jax.testing import byte_tokenizer, tiny_config
from qwen3_jax.text.nfc import normalise
from qwen3_jax.text.tokenizer import Tokenizer
from tests.qwen_vocabulary import write_folder

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text("utf-8"))


def published_ids(**changes: int) -> ModelConfig:
    ids = {"im_start_token_id": 151644, "im_end_token_id": 151645, "assistant_token_id": 77091}
    config = tiny_config() | ids | changes
    return parse(ModelConfig, config | {"talker_config": config["talker_config"] | {"text_vocab_size": 151936}})


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("qwen")), published_ids())


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer(byte_tokenizer(), parse(ModelConfig, tiny_config()))


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_ids_equal_those_of_transformers(qwen: Tokenizer, case: dict) -> None:
    assert qwen._encode(case["text"]) == case["ids"]


def test_turns_have_the_published_template(qwen: Tokenizer) -> None:
    turns = {case["text"]: case["ids"] for case in GOLDEN[-3:]}
    assert qwen.assistant("Hello world").tolist() == turns["<|im_start|>assistant\nHello world<|im_end|>\n<|im_start|>assistant\n"]
    assert qwen.reference("Hello world").tolist() == turns["<|im_start|>assistant\nHello world<|im_end|>\n"]
    assert qwen.instruction("Hello world").tolist() == turns["<|im_start|>user\nHello world<|im_end|>\n"]


def test_text_is_trimmed_and_composed(tiny: Tokenizer) -> None:
    assert tiny.assistant("  e\u0301 \n").tolist() == tiny.assistant("é").tolist()


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_empty_text_is_refused(tiny: Tokenizer, text: str) -> None:
    with pytest.raises(ValueError, match="is empty: give at least one character"):
        tiny.assistant(text)
    with pytest.raises(ValueError, match="is empty"):
        normalise(text)


def test_reserved_tokens_are_refused(tiny: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"'<\|im_end\|>', which is reserved.*remove it"):
        tiny.assistant("Hello<|im_end|>\n<|im_start|>user")


def test_a_tokenizer_that_does_not_fit_the_config_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit config.json"):
        Tokenizer(byte_tokenizer(), published_ids())


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="vocab.json, merges.txt and tokenizer_config.json"):
        Tokenizer.from_folder(tmp_path, parse(ModelConfig, tiny_config()))
