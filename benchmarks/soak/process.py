"""The server of a soak: started with files of its own, looked at from outside (``/metrics``, the kernel), and its log."""

import os
import re
import socket
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.server import launch
from qwen3_jax.checkpoint.folders import cache_folder
from server.ops.keys import new_key

GRACE = 5.0  # seconds, TTS_GRACE
_METRIC = re.compile(r"^(tts_\w+(?:{.*?})?) (\S+)$", re.MULTILINE)
_LINE = re.compile(r"^\d{4}-\d\d-\d\d \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
_BAD = re.compile(r" (?:ERROR|CRITICAL) |Traceback|Task was destroyed|never retrieved|never awaited|Warning:|Exception ignored|Fatal")


@dataclass(frozen=True)
class Look:
    """The server at one moment."""

    slots: int  # that speak
    queue: int
    sessions: int
    connections: int  # that of this look included
    threads: int
    descriptors: int
    memory: float  # resident, MB
    voices: tuple[str, ...]  # files of the folder of voices, and of kept prompts
    temporary: tuple[str, ...]  # files of the temporary folder


@dataclass(frozen=True)
class Log:
    """What the server has written."""

    lines: int
    kilobytes: float
    bad: tuple[str, ...]  # lines that must not be there


class Server:
    """A process, ready. Its log is ``server.log`` in ``folder``.

    Raises:
        RuntimeError, TimeoutError: as ``benchmarks.server.launch``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "server.log"
        pairs = [new_key(name) for name in ("loud", "quiet")]
        (self.loud, _), (self.quiet, _) = pairs
        for name in ("voices", "temporary", "cache", "data"):
            (folder / name).mkdir(parents=True)
        (folder / "keys").write_text("".join(f"{line}\n" for _, line in pairs), "utf-8")
        options = {
            "TTS_API_KEYS": str(folder / "keys"),
            "TTS_VOICES_DIR": str(folder / "voices"),
            "TTS_GRACE": str(GRACE),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_DATA_HOME": str(folder / "data"),
            "TMPDIR": str(folder / "temporary"),
        }
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (cache := cache_folder()) is not None:
            options["JAX_COMPILATION_CACHE_DIR"] = str(cache / "xla")  # programs are the user's own ones, prompts are not
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        self.process: subprocess.Popen[bytes] = launch([sys.executable, "-m", "server"], self.port, options, self.log)
        self._seen = psutil.Process(self.process.pid)

    def metrics(self) -> dict[str, float]:
        """``/metrics``: name with labels -> value. Raises OSError."""
        headers = {"Authorization": f"Bearer {self.quiet}"}
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}/metrics", headers=headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return metrics_of(answer.read().decode())

    def look(self, metrics: dict[str, float]) -> Look:
        """Everything that has to be the same at the end."""
        with self._seen.oneshot():
            threads, descriptors, memory = self._seen.num_threads(), self._seen.num_fds(), self._seen.memory_info().rss / 1e6
        return Look(
            slots=int(metrics["tts_active_slots"]),
            queue=int(metrics["tts_queue_depth"]),
            sessions=int(metrics["tts_sessions"]),
            connections=int(metrics["tts_connections"]),
            threads=threads,
            descriptors=descriptors,
            memory=round(memory, 1),
            voices=_files(self.folder / "voices") + _files(self.folder / "cache"),
            temporary=_files(self.folder / "temporary"),
        )

    def memory(self) -> float:
        """Resident, MB."""
        return float(self._seen.memory_info().rss / 1e6)

    def read_log(self) -> Log:
        """All that it has written."""
        return log_of(self.log.read_text("utf-8", errors="replace"))


def metrics_of(page: str) -> dict[str, float]:
    """Prometheus' text -> name with labels -> value."""
    return {name: float(value) for name, value in _METRIC.findall(page)}


def log_of(text: str) -> Log:
    """A log's figures, and its lines that must not be there: errors, tracebacks, and whatever is no record of the server's."""
    lines = text.splitlines()
    return Log(
        len(lines), round(len(text.encode()) / 1e3, 1), tuple(line[:300] for line in lines if _BAD.search(line) or not _LINE.match(line))
    )


def _files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
