"""A golden file (what the reference implementation computed) -> the requests that make it again.

Keys: wav [F], mel [F 128], spk [H], codec_codes [N 16], dec_codes [1 N 16], dec_wav_full [F], ref_code_{short,long} [N 16],
and per generated row NAME_{st,ns}.ROW.{input_ids, ref_ids, instruct_ids, codes [N 16], hidden [N H]}; st = streaming text.
A key may be absent (a case that a rounding tie decides is dropped), but none may be unknown.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

PARTS = frozenset({"wav", "mel", "spk", "codec_codes", "dec_codes", "dec_wav_full", "ref_code_short", "ref_code_long"})
FRAMES = 23  # the reference drew 24 book-0 ids; the last one never became a frame
_ROW = re.compile(r"(?P<name>\w+)_(?P<text>st|ns)\.(?P<row>\d+)\.(?P<what>input_ids|ref_ids|instruct_ids|codes|hidden)")


class GoldenRow(NamedTuple):
    """What a row of a case asks for, beside its ids."""

    language: str
    speaker: str | None = None
    x_vector: int = 0  # sign of the golden's ``spk``; 0: none
    reference: str | None = None  # key of the reference codes


CASES = {
    "xvec_en": [GoldenRow("english", x_vector=1)],
    "icl_short": [GoldenRow("japanese", x_vector=1, reference="ref_code_short")],
    "icl_long": [GoldenRow("auto", x_vector=1, reference="ref_code_long")],
    "batch": [GoldenRow("english", x_vector=1, reference="ref_code_short"), GoldenRow("french", x_vector=-1)],
    "ryan": [GoldenRow("english", speaker="ryan")],
    "dialect": [GoldenRow("auto", speaker="eric")],
    "design": [GoldenRow("chinese")],
}


class Expected(NamedTuple):
    """One row of a case, and what came of it."""

    row: GoldenRow
    input_ids: np.ndarray
    ref_ids: np.ndarray | None
    instruct_ids: np.ndarray | None
    codes: np.ndarray  # [N 16]
    hidden: np.ndarray  # [N H]


class Golden(NamedTuple):
    """A golden file, taken apart."""

    arrays: Mapping[str, np.ndarray]
    cases: Mapping[tuple[str, bool], list[Expected]]  # (name, streaming text) -> rows


def read_golden(file: Path) -> Golden:
    """Read and check a golden file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not safetensors, an unknown key, or a case that is not whole; names the key.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such golden file")
    try:
        arrays = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}); make it again") from error
    found: dict[tuple[str, bool], dict[int, dict[str, np.ndarray]]] = {}
    for key, array in arrays.items():
        if key in PARTS:
            continue
        match = _ROW.fullmatch(key)
        if match is None or match["name"] not in CASES:
            known = f"{', '.join(sorted(PARTS))} and NAME_st|ns.ROW.* with NAME of {', '.join(CASES)}"
            raise ValueError(f"{file}: unknown key {key!r}; known are {known}")
        rows = found.setdefault((match["name"], match["text"] == "st"), {})
        rows.setdefault(int(match["row"]), {})[match["what"]] = array
    return Golden(arrays, {case: _rows(file, case[0], rows, arrays) for case, rows in found.items()})


def _rows(file: Path, name: str, rows: Mapping[int, Mapping[str, np.ndarray]], arrays: Mapping[str, np.ndarray]) -> list[Expected]:
    if sorted(rows) != list(range(len(CASES[name]))):
        raise ValueError(f"{file}: case {name!r} has rows {sorted(rows)}, expected {len(CASES[name])} from 0; make the golden again")
    made = []
    for number, row in enumerate(CASES[name]):
        wanted = {"input_ids", "codes", "hidden"} | ({"ref_ids"} if row.reference else set())
        missing = sorted(wanted - rows[number].keys())
        missing += [key for key in (row.reference, "spk" if row.x_vector else None) if key is not None and key not in arrays]
        if missing:
            raise ValueError(f"{file}: case {name!r} row {number} lacks {', '.join(missing)}; make the golden again")
        found = rows[number]
        made.append(Expected(row, found["input_ids"], found.get("ref_ids"), found.get("instruct_ids"), found["codes"], found["hidden"]))
    return made
