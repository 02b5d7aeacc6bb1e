"""Teacher-forced logits at full size: float32, bfloat16 and int8 against the official float32. Prints a table.

usage: python -m benchmarks.logits CHECKPOINT [--official-python PYTHON]

CHECKPOINT: a published folder, or one that benchmarks.full_size made. PYTHON: an interpreter that has `qwen-tts` 0.1.1; without it the
reference is our float32, which `convert verify` compares with the official one.
Error = RMS of the difference from the float32 logits, over their RMS. In bfloat16 ours should not exceed 1.2 times the official
package's own. "first": positions whose most likely entry is the reference's.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks.workload import request
from qwen3_jax.model import checks
from qwen3_jax.model.cache import empty
from qwen3_jax.model.model import is_int8, load
from qwen3_jax.model.talker import Talker

OFFICIAL = Path(__file__).parent / "official.py"


def ours(folder: Path, dtype: str) -> dict[str, np.ndarray]:
    """The same rows and codes through our talker and predictor."""
    model = load(folder, stored=jnp.dtype(dtype)) if dtype == "int8" else load(folder, dtype=jnp.dtype(dtype))
    given = request(model.config.talker_config.hidden_size)
    checks.text_ids(model.config, given["input_ids"], "the benchmark's input_ids", least=0)  # others would read NaN
    checks.reference(model.config, given["forced_codes"])

    @jax.jit
    def forward(params: dict) -> tuple[jax.Array, jax.Array]:
        talker: Talker = nnx.merge(model.graphs.talker, params)
        codes = given["forced_codes"].astype(np.int32)
        rows = jnp.concatenate([talker.text_rows(given["input_ids"][None]), talker.code_rows(codes[None])], axis=1)
        layers, kv_heads, head_dim = talker.kv_shape
        hidden, _ = talker.model(rows, empty(layers, 1, kv_heads, rows.shape[1], head_dim, rows.dtype), jnp.zeros(1, jnp.int32))
        predictor = talker.code_predictor
        inputs = jnp.concatenate(
            [
                hidden[0, -len(codes) - 1 : -1, None],
                talker.model.codec_embedding(codes[:, :1], rows.dtype),
                predictor.embed(codes[:, 1:], rows.dtype)[:, :-1],
            ],
            axis=1,
        )
        layers, kv_heads, head_dim = predictor.kv_shape
        cache = empty(layers, len(codes), kv_heads, predictor.books + 1, head_dim, rows.dtype)
        states, _ = predictor.hidden(inputs, cache, jnp.zeros(len(codes), jnp.int32))
        heads = jnp.stack([predictor.logits(states[:, book + 1], jnp.int32(book)) for book in range(predictor.books)], axis=1)
        return talker.codec_head(hidden)[0].astype(jnp.float32), heads

    talker, predictor = forward(model.params["talker"])
    return {"talker": np.asarray(talker), "predictor": np.asarray(predictor)}


def official(python: str, folder: Path, dtype: str) -> dict[str, np.ndarray]:
    """What the official package computes, in its own process."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits"
        subprocess.run(
            [python, str(OFFICIAL), "logits", str(folder), dtype, str(out)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return dict(np.load(out.with_suffix(".npz")))


def error(logits: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(np.mean((logits - reference) ** 2) / np.mean(reference**2)))


def first(logits: np.ndarray, reference: np.ndarray) -> float:
    return float(np.mean(logits.argmax(axis=-1) == reference.argmax(axis=-1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--official-python")
    given = parser.parse_args()
    try:
        if is_int8(given.checkpoint):
            parser.error(f"{given.checkpoint} holds weights rounded to int8: give the published folder that it was converted from")
        found = {f"ours {dtype}": ours(given.checkpoint, dtype) for dtype in ("float32", "bfloat16", "int8")}
    except (ValueError, FileNotFoundError) as why:
        parser.error(str(why))
    name = "our float32"
    reference = found["ours float32"]
    if given.official_python:
        name, reference = "the official float32", official(given.official_python, given.checkpoint, "float32")
        found["official bfloat16"] = official(given.official_python, given.checkpoint, "bfloat16")
    table = Table("", *(f"{part} {what}" for part in reference for what in ("error", "first")), title=f"against {name}")
    for row, logits in found.items():
        columns = ((f"{error(logits[part], expected):.2e}", f"{first(logits[part], expected):.1%}") for part, expected in reference.items())
        table.add_row(row, *(cell for pair in columns for cell in pair))
    Console().print(table)


if __name__ == "__main__":
    main()
