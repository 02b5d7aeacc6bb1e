"""What a machine was timed at, kept beside its compiled programs, and what else the machine did meanwhile."""

import contextlib
import hashlib
import logging
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import msgspec

import qwen3_jax
from qwen3_jax.checkpoint.folders import write_whole
from qwen3_jax.runtime import compilation

QUIET = 0.125  # of its cores that others may take while a machine counts as quiet: a step is an eighth longer then
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_STAT, _CPUS = Path("/proc/stat"), Path("/proc/cpuinfo")
_IDLE = (3, 4, 8, 9)  # columns of /proc/stat: idle, iowait, and guests, which are in user as well
log = logging.getLogger(__name__)


class TimedSlots(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Slots that were smooth; meanwhile other programs took ``others`` cores, which is little if ``quiet``. ``load``: the load averages."""

    slots: int
    quiet: bool
    others: float
    load: list[float]


class Kept:
    """The figure of one checkpoint on one machine. What cannot be read counts as none, what cannot be written is not kept.

    Args:
        fingerprint, dtypes, most, columns: what the figure depends on besides the machine, its cores and the versions.
    """

    def __init__(self, fingerprint: str, dtypes: str, most: int, columns: int) -> None:
        versions = (qwen3_jax.__version__, jax.__version__, version("jaxlib"), os.environ.get("XLA_FLAGS", ""))
        key = "\n".join(map(str, (fingerprint, dtypes, most, columns, *versions, *_machine())))
        folder = compilation.folder()
        self.path = None if folder is None else folder / f"slots-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        self._most = most

    def load(self) -> TimedSlots | None:
        """What ``save`` kept."""
        if self.path is None:
            return None
        try:
            figure = msgspec.json.decode(self.path.read_bytes(), type=TimedSlots)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("what was timed before cannot be read and is timed again: %s: %s", self.path, error)
            return None
        return figure if 1 <= figure.slots <= self._most else None

    def save(self, figure: TimedSlots) -> None:
        """Keep it: whole, or not at all."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, msgspec.json.encode(figure))
        except OSError as error:
            log.warning("what was timed is not kept: %s", error)


class OtherWork:
    """What else the machine does while the ``with`` runs: ``others``, cores taken by other programs or by a hypervisor."""

    def __init__(self) -> None:
        self.cores = os.cpu_count() or 1  # all that /proc/stat counts, ours or not
        self.load: tuple[float, ...] = ()
        self.others = 0.0

    def __enter__(self) -> "OtherWork":
        self._begun, self._busy, self._ours = time.monotonic(), _busy_seconds(), _own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.load = tuple(round(one, 2) for one in os.getloadavg())
        busy, elapsed = _busy_seconds(), time.monotonic() - self._begun
        if busy is None or self._busy is None:  # no Linux: what runs besides us, who keep every core busy
            self.others = max(0.0, self.load[0] - self.cores)
        else:
            self.others = max(0.0, busy - self._busy - (_own_seconds() - self._ours)) / elapsed

    @property
    def quiet(self) -> bool:
        """Whether others can be left out of account."""
        return self.others <= QUIET * self.cores


def _busy_seconds() -> float | None:
    """Core seconds that anybody has used since the machine started; None where nobody says."""
    try:
        columns = [int(value) for value in _STAT.read_text("ascii").split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    return sum(value for column, value in enumerate(columns) if column not in _IDLE) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _machine() -> tuple[str, ...]:
    """Which machine that is: not its name, which is new with every container, but what its speed depends on."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        cpu = next((line for line in _CPUS.read_text("utf-8", "replace").splitlines() if line.startswith("model name")), cpu)
    quota = ""
    with contextlib.suppress(OSError):
        quota = _QUOTA.read_text("ascii")
    return platform.machine(), cpu, str(len(_cores())), quota


def _cores() -> set[int] | range:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
