"""A JWKS, a file or an https address -> the keys in it, as of a short time ago. Fetching them makes nobody wait who has a known key.

They are fetched twice in their lifetime, in a thread. A key that is not there any more is refused from then on. Where fetching fails, the
last keys stand for an hour. A key id that is not known is looked for at once, but no more often than every 30 seconds.
"""

import asyncio
import contextlib
import http.client
import json
import logging
import urllib.error
import urllib.request
from pathlib import Path
from time import monotonic
from typing import Any

import jwt

from qwen3_jax.checkpoint.folders import expand
from qwen3_jax.text import files

PAUSE = 30.0  # seconds between two fetches that clients can cause, and before a failed one is tried again
STANDING = 3600.0  # seconds that keys count after they were last fetched
TIMEOUT = 10.0  # seconds for an answer, from its beginning to its end
MAX_BYTES = 1_000_000
log = logging.getLogger(__name__)


class KeySet:
    """The keys of one JWKS. For one event loop, whose tasks ``close`` ends.

    Args:
        location: a file, or an https address.
        lifetime: seconds within which a key that was taken out is refused.

    Raises:
        ValueError: an address that is not https.
    """

    def __init__(self, location: str, lifetime: float) -> None:
        if "://" in location and not location.startswith("https://"):
            raise ValueError(f"TTS_JWKS = {location!r}: must be a file or an https address")
        self._location, self._pause = location, lifetime / 2
        self._keys: list[jwt.PyJWK] = []
        self._fetched = self._tried = self._begun = float("-inf")
        self._failing = False
        self._reading: asyncio.Future[list[jwt.PyJWK]] | None = None  # in a thread
        self._fetching: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to fetch, unless that has begun already."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())

    def close(self) -> None:
        """Fetch no more."""
        for task in (self._keeping, self._fetching):
            if task is not None:
                task.cancel()

    async def find(self, algorithm: str, kid: Any) -> jwt.PyJWK | None:
        """The key of that id, or of a token without an id the only one of its algorithm; None if there is none."""
        self.start()
        if (key := self._known(algorithm, kid)) is not None:
            return key
        under_way = self._fetching is not None and not self._fetching.done()
        if under_way or monotonic() - self._tried >= PAUSE:
            await asyncio.wait({self._fetch()})
        return self._known(algorithm, kid)

    def _known(self, algorithm: str, kid: Any) -> jwt.PyJWK | None:
        if monotonic() - self._fetched > STANDING:
            self._keys = []
        fitting = [key for key in self._keys if key.algorithm_name == algorithm]
        if kid is None and len(fitting) == 1:
            return fitting[0]
        return next((key for key in fitting if key.key_id == kid), None)

    async def _keep(self) -> None:
        while True:
            await asyncio.wait({self._fetch()})
            await asyncio.sleep(min(self._pause, PAUSE) if self._failing else self._pause)

    def _fetch(self) -> "asyncio.Task[None]":
        """The fetch that is under way, or else a new one."""
        if self._fetching is None or self._fetching.done():
            self._tried = monotonic()
            self._fetching = asyncio.create_task(self._take())
        return self._fetching

    async def _take(self) -> None:
        """Take the keys over, or say why not."""
        if self._reading is None or self._reading.done():  # else a thread hangs, in the resolver for example: no second one joins it
            self._begun = monotonic()
            self._reading = asyncio.get_running_loop().run_in_executor(None, read, self._location)
            self._reading.add_done_callback(lambda one: one.cancelled() or one.exception())  # it may come when nobody waits any more
        await asyncio.wait({self._reading}, timeout=TIMEOUT)
        try:
            if not self._reading.done():
                raise TimeoutError(f"no answer within {TIMEOUT:g} s")
            keys = self._reading.result()
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not self._failing:
                stand = f"the last keys stand for {STANDING / 60:g} minutes" if self._keys else "there are no keys yet"
                log.error("JWKS %s cannot be read, and %s: %s", self._location, stand, error or type(error).__name__)
            self._failing = True
            return
        if self._failing:
            log.info("JWKS %s can be read again", self._location)
        self._keys, self._fetched, self._failing = keys, self._begun, False


class _Https(urllib.request.HTTPRedirectHandler):
    """Follows to https alone: whoever can change an answer on its way could give any keys."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            fp.close()
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def read(location: str) -> list[jwt.PyJWK]:
    """The keys that can be used of a file, or of an https address. Blocks.

    Raises:
        OSError, http.client.HTTPException: it cannot be read.
        ValueError: it is no JWKS.
    """
    data = _download(location) if "://" in location else files.read(Path(expand(location)))
    document = json.loads(data)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("it is no JWKS: an object with a list called keys")
    keys = []
    for one in document["keys"]:
        with contextlib.suppress(jwt.PyJWTError, ValueError, TypeError, AttributeError):  # of a kind that is not known here
            keys.append(jwt.PyJWK(one))
    return keys


def _download(address: str) -> bytes:
    end, data = monotonic() + TIMEOUT, b""
    try:
        opened = urllib.request.build_opener(_Https).open(address, timeout=TIMEOUT / 2)
    except urllib.error.HTTPError as error:
        error.close()  # it is the answer, too
        raise
    with opened as answer:
        while piece := answer.read1(MAX_BYTES):
            data += piece
            if len(data) > MAX_BYTES:
                raise ValueError(f"it is longer than {MAX_BYTES} bytes")
            if monotonic() > end:
                raise TimeoutError(f"no answer within {TIMEOUT:g} s")
    return data
