"""Writes tokens.json: what transformers' own Qwen2Tokenizer makes of mixed-script text. Run where `transformers` is installed.

usage: make_tokens.py TOKENIZER_JSON OUT      (TOKENIZER_JSON: the published Qwen3 tokenizer.json)
"""

import json
import sys
import tempfile
from pathlib import Path

from transformers import AddedToken, Qwen2Tokenizer

TEXTS = [
    "Hello world",
    "Hello, I am Makima. It's what we've done, they'll say; I'd know. DON'T!",
    "The year is 2026, and 3.14159 is π — isn't it?",
    "  two  spaces   and\ttabs ",
    "line one\nline two\r\n\n\nline five",
    "こんにちは、世界。マキマです。",
    "我叫通义千问，是阿里云的开源大模型。",
    "안녕하세요, 만나서 반갑습니다.",
    "Привет, как дела? Ёлка.",
    "Straße, naïve café, Ångström, São Paulo, ñandú",
    "e\u0301 and é are one after NFC; so are ｶﾞ and か\u3099",
    "mixed 日本語 and English、そして 한국어 и русский",
    "emoji 👩‍👩‍👧 🇯🇵 ✨ and symbols ©®™ ±≠≤ ½",
    "مرحبا بالعالم שלום עולם",
    "हिन्दी ไทย Ελληνικά",
    "snake_case CamelCase kebab-case path/to/file.txt http://a.b/c?d=e&f=1",
    "...!!!???\"quoted\" 'single' (paren) [brack] {brace} <angle>",
    "1234567890 12 345 6,789.00",
    "x" * 40,
    "a\u00a0b\u3000c\u200bd",
]
TEMPLATES = [
    "<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>assistant\n{}<|im_end|>\n",
    "<|im_start|>user\n{}<|im_end|>\n",
]


def main(source: Path, out: Path) -> None:
    spec = json.loads(source.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
        (Path(folder) / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]), "utf-8")
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
        tokenizer = Qwen2Tokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    cases = [{"text": text, "ids": tokenizer(text).input_ids} for text in [*TEXTS, *(t.format("Hello world") for t in TEMPLATES)]]
    out.write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
