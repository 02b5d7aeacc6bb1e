"""``python -m convert SRC DST`` and ``python -m convert verify CHECKPOINT GOLDEN``."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from typer.core import TyperGroup

from convert.verify import Result, verify
from qwen3_jax.checkpoint import converted as checkpoint
from qwen3_jax.checkpoint import hub, published
from qwen3_jax.checkpoint.atomic import check_free
from qwen3_jax.checkpoint.int8 import without_scales
from qwen3_jax.checkpoint.mapping import PARTS, flatten, make_plan
from qwen3_jax.model import model
from qwen3_jax.runtime import compilation
from qwen3_jax.terminal import console, path_argument, say, tell
from qwen3_jax.text.tokenizer_files import TOKENIZER_FILES


class Dtype(StrEnum):
    """What ``--dtype`` takes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


class _DefaultIsConvert(TyperGroup):
    """``SRC DST`` without a command's name means ``convert SRC DST``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["convert", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_DefaultIsConvert, no_args_is_help=True, add_completion=False, help="python -m convert SRC DST, or a command:")


@app.command("convert")
def convert_command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder in the published layout, or a hub id (org/name).")],
    destination: Annotated[Path, path_argument("The folder to make.", "DST")],
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the talker (int8: of its matrices). Default: the file's. The rest: float32.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub repository.")] = None,
) -> None:
    """Convert a published checkpoint. (The command's name may be left out.)"""
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, so leave accelerators to others
    convert(source, destination, dtype, revision)


@app.command("verify")
def verify_command(
    folder: Annotated[Path, path_argument("A converted checkpoint, or a folder in the published layout.", "CHECKPOINT")],
    golden: Annotated[Path, path_argument("A safetensors file of what the reference computed with it.", "GOLDEN")],
) -> None:
    """Compare with results of the reference implementation, in float32; exit status 1 past a tolerance."""
    compilation.use_persistent_cache()
    results = verify(folder, golden)
    console.print(_verdicts(results))
    failed = [result.part for result in results if not result.passed]
    if failed:
        tell(f"{len(failed)} of {len(results)} parts differ: {', '.join(failed)}", "red")
        raise typer.Exit(1)


def convert(source: str, destination: Path, dtype: str | None = None, revision: str | None = None) -> str:
    """Convert ``source`` (folder or hub id) into the new folder ``destination``; prints a report, returns the fingerprint.

    Raises:
        FileNotFoundError: no such source.
        ValueError: the source does not fit, or the destination exists; says what to do.
    """
    check_free(destination)
    folder = hub.local_folder(source, revision)
    if checkpoint.is_converted(folder):
        raise ValueError(f"{folder} is a converted checkpoint already; give the published folder it came from")
    config, codec, _ = model.read_configs(folder)
    sources = published.scan(folder)
    kind = np.dtype(dtype) if dtype else published.talker_dtype(folder)
    _, abstract = model.abstract(config, codec, np.dtype(np.float32) if kind == np.int8 else kind, kind)
    plan = make_plan({name: tensor.shape for name, tensor in sources.items()}, without_scales(flatten(abstract)))
    with _progress() as bars:
        params = published.load_published(folder, abstract, device=jax.devices("cpu")[0], progress=_bar(bars, "reading", abstract))
    with console.status("writing"):
        fingerprint = checkpoint.save(destination, params, folder)
    console.print(_parts(params, plan.sources, plan.ignored))
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        say(f"note: {folder} has no tokenizer files, so the checkpoint cannot read text until they are copied in")
    say(f"{destination}: {config.tts_model_type}, sha256 {fingerprint}")
    return fingerprint


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _bar(bars: Progress, what: str, abstract: dict[str, Any]) -> Callable[[str, int], None]:
    total = sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in flatten(abstract).values())
    task = bars.add_task(what, total=total)
    return lambda path, size: bars.advance(task, size)


def _parts(params: dict[str, Any], sources: dict[str, list[str]], ignored: dict[str, str]) -> Table:
    table = Table("part", "dtype", *(_right(name) for name in ("tensors", "parameters", "bytes")))
    flat = flatten(params)
    for place in PARTS.values():
        paths = [path for path in flat if path.startswith(place)]
        if paths:
            sizes = sum(flat[path].size for path in paths), sum(flat[path].nbytes for path in paths)
            tensors = sum(len(sources.get(path, ())) for path in paths)  # scales have none
            dtypes = sorted({str(flat[path].dtype) for path in paths if flat[path].ndim > 1})
            table.add_row(place.rstrip("."), ", ".join(dtypes), f"{tensors:,}", *(f"{size:,}" for size in sizes))
    for reason in dict.fromkeys(ignored.values()):
        table.add_row(f"left out: {reason}", "", f"{sum(other == reason for other in ignored.values()):,}", "", "", style="dim")
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _verdicts(results: list[Result]) -> Table:
    table = Table("part", _right("max abs error"), _right("relative error"), "codes equal", "verdict")
    for result in results:
        error = ["" if value is None else f"{value:.2e}" for value in (result.error, result.relative)]
        codes = "" if result.codes_equal is None else ("yes" if result.codes_equal else "NO")
        failed = "[red]FAILED[/red]" + (f": {result.note}" if result.note else "")
        table.add_row(result.part, *error, codes, "ok" if result.passed else failed)
    return table


def main() -> None:
    """Run the command line; what the user can put right is one line on stderr and exit status 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        tell(f"error: {error}", "red")
        sys.exit(2)


if __name__ == "__main__":
    main()
