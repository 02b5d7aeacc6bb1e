"""The file of API keys -> who has which key, read again when it changes: a line that is taken out is refused within seconds."""

import asyncio
import hashlib
import logging
import os
import secrets
from pathlib import Path

from qwen3_jax.checkpoint.folders import expand
from qwen3_jax.messages import shorten
from qwen3_jax.text import files

LOOK_SECONDS = 2.0  # between two looks at the file
log = logging.getLogger(__name__)


class KeyFile:
    """The keys of one file. For one event loop, whose task ``close`` ends.

    Raises:
        ValueError, FileNotFoundError: a file that cannot be read, or has a line that is not name:sha256.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(expand(path))
        try:
            self._seen = self._look()
            self._names = read_keys(self._path)
        except OSError as error:
            fix = f"give a file that can be read; python -m server key NAME >> {path} makes one"
            raise type(error)(f"TTS_API_KEYS = {str(path)!r}: {error.strerror}: {fix}") from error
        except ValueError as error:
            raise ValueError(f"TTS_API_KEYS: {error}") from error
        self._failing = False
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look at the file, unless that has begun already."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())

    def close(self) -> None:
        """Look no more."""
        if self._keeping is not None:
            self._keeping.cancel()

    def name(self, key: str) -> str | None:
        """Whose key it is; None if nobody's."""
        return self._names.get(hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest())

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Read the file if it has changed. What cannot be read leaves the last keys standing, and is logged once."""
        try:
            if (seen := self._look()) != self._seen:
                self._names, self._seen = read_keys(self._path), seen
                log.info("%s has changed: %d API keys", self._path, len(self._names))
            self._failing = False
        except (OSError, ValueError) as error:
            if not self._failing:
                log.error("the last API keys stand, for their file cannot be read: %s", error)
            self._failing = True

    def _look(self) -> tuple[int, int, int]:
        found = os.stat(self._path)
        return found.st_ino, found.st_size, found.st_mtime_ns


def new_key(name: str) -> tuple[str, str]:
    """A fresh API key and the line that the key file keeps of it.

    Raises:
        ValueError: a name that the line would not give back.
    """
    if name != name.strip() or not name.isprintable() or not name or name[0] == "#" or ":" in name:
        raise ValueError(f"the key's name {shorten(repr(name))}: letters without a colon are taken, no # and no blank before them")
    key = f"tts-{secrets.token_urlsafe(32)}"
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def read_keys(path: Path) -> dict[str, str]:
    """A key file -> {sha256: name}.

    Raises:
        ValueError: a line that is not name:sha256.
    """
    found = {}
    for number, line in enumerate(files.read(Path(expand(path))).splitlines(), 1):
        name, _, digest = (line := line.strip()).partition(":")
        if not line or line.startswith("#"):
            continue
        if not name or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"{path}, line {number}: must be name:sha256; make one with python -m server key NAME")
        found[digest] = name
    return found
