"""Figures and sentences -> a table for the terminal, ``figures.json``, and ``index.html``: one file with players and spectrograms."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import soundfile
from rich.table import Table
from rich.text import Text

from qwen3_jax.audio.samples import SAMPLE_RATE
from qwen3_jax.evaluate.judges import Figure, needed
from qwen3_jax.messages import printable
from qwen3_jax.shapes import F32
from qwen3_jax.terminal import add_row

JSON, PAGE = "figures.json", "index.html"


class ReportRow(msgspec.Struct, kw_only=True):
    """One sentence: what was to be said, what was heard, and its own figures by name."""

    text: str
    heard: str = ""
    finish_reason: str = ""
    seconds: float = 0.0
    figures: dict[str, float] = {}


class Report(msgspec.Struct, kw_only=True):
    """What an evaluation found. ``about`` says of what (model, voice, versions, machine)."""

    title: str
    about: dict[str, str]
    figures: list[Figure]
    rows: list[ReportRow]

    def fill_rows(self) -> None:
        """Give each row the figures that have a value for each sentence."""
        for figure in self.figures:
            for row, value in zip(self.rows, figure.each or [], strict=False):
                row.figures[figure.name] = value


def table(report: Report) -> Table:
    """For the terminal."""
    about = ", ".join(f"{k} {v}" for k, v in report.about.items())
    shown = Table("figure", "value", "judge", "scale", title=Text(printable(report.title)), caption=Text(printable(about)))
    for figure in report.figures:
        add_row(shown, figure.name, number(figure.value), figure.judge, figure.scale)
    return shown


def number(value: float) -> str:
    """Three figures that count, and whole numbers as they are."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.3f}"


def write(report: Report, folder: Path, waves: Mapping[str, Sequence[F32[np.ndarray, " _"]]]) -> None:
    """Write ``figures.json`` and ``index.html`` into ``folder``; ``waves`` are columns of players by name, the first one is drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    values = msgspec.to_builtins(report)
    (folder / JSON).write_text(json.dumps(values, indent=1, ensure_ascii=False), "utf-8")
    (folder / PAGE).write_text(page(report, waves), "utf-8")


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } th { text-align: left; color: #666; font-weight: 500 }
td, th { padding: .35rem .6rem; border-top: 1px solid #ddd; vertical-align: top } td.n { font-variant-numeric: tabular-nums }
img { width: 22rem; height: 5rem; display: block; margin-bottom: .3rem } audio { width: 22rem; height: 2rem; display: block }
.heard { color: #a33 } .small { color: #666; font-size: .85em }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616 } td, th { border-color: #333 } .heard { color: #e88 } }
"""


def page(report: Report, waves: Mapping[str, Sequence[F32[np.ndarray, " _"]]]) -> str:
    """The page, whole in itself; the sentences with most word errors come first."""
    escape = html.escape
    about = " · ".join(f"{escape(name)} {escape(value)}" for name, value in report.about.items())
    cells = [(f.name, f"<b>{number(f.value)}</b>", f.judge, f.scale) for f in report.figures]
    head = "".join(
        f"<tr><td>{escape(name)}</td><td class=n>{value}</td><td>{escape(judge)}</td><td class=small>{escape(scale)}</td></tr>"
        for name, value, judge, scale in cells
    )
    order = sorted(range(len(report.rows)), key=lambda index: -report.rows[index].figures.get("WER", 0.0))
    body = "".join(_sentence(index, report.rows[index], {name: column[index] for name, column in waves.items()}) for index in order)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style><h1>{escape(report.title)}</h1><p class=small>{about}</p>"
        f"<table><tr><th>figure<th>value<th>judge<th>scale</tr>{head}</table>"
        f"<table><tr><th>sentence<th>figures<th>sound</tr>{body}</table></html>"
    )


def _sentence(index: int, row: ReportRow, waves: Mapping[str, F32[np.ndarray, " _"]]) -> str:
    figures = "<br>".join(f"{html.escape(name)} {number(value)}" for name, value in row.figures.items())
    heard = f"<br><span class=heard>heard: {html.escape(row.heard)}</span>" if row.figures.get("WER") else ""
    sounds = "".join(
        f"<div class=small>{html.escape(name)}</div>{_spectrogram(wave) if place == 0 else ''}{_player(wave)}"
        for place, (name, wave) in enumerate(waves.items())
        if len(wave)
    )
    end = f", ended by {html.escape(row.finish_reason)}" if row.finish_reason else ""
    return (
        f"<tr><td>{html.escape(row.text)}{heard}<br><span class=small>{index:04}: {row.seconds:.2f} s{end}</span></td>"
        f"<td class='n small'>{figures}</td><td>{sounds}</td></tr>"
    )


def _player(wave: F32[np.ndarray, " F"]) -> str:
    """An MP3 inside the page: a tenth of a wav's size, and every browser plays it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), SAMPLE_RATE, format="MP3")
    return f"<audio controls preload=none src='data:audio/mpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'></audio>"


def _spectrogram(wave: F32[np.ndarray, " F"]) -> str:
    """A picture of the log spectrum, 0 to 12 kHz, 80 dB."""
    image: Any = needed("matplotlib.image")
    size, hop = 512, 240
    padded = np.pad(wave, (0, max(0, size - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size).astype(np.float32)
    level = 20 * np.log10(np.abs(np.fft.rfft(frames, axis=1)).T[::2] + 1e-6)
    buffer = io.BytesIO()
    image.imsave(buffer, np.clip(level, level.max() - 80, None), cmap="magma", origin="lower", format="png")
    return f"<img alt=spectrogram src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
