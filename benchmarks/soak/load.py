"""All loud clients of a soak, in a process of their own, so that they do not stand in the quiet one's way."""

import asyncio
import time
from random import Random

import httpx
from websockets.exceptions import WebSocketException

from benchmarks.soak.bad import nuisance
from benchmarks.soak.posters import burst, poster, uploader
from benchmarks.soak.rude import flooder, slow_reader, vanisher, vanishing_poster
from benchmarks.soak.site import Round, Site
from benchmarks.soak.talkers import canceller, json_talker, talker, writer
from benchmarks.soak.tally import Broken, Tally

KINDS: tuple[Round, ...] = (
    talker,
    json_talker,
    writer,
    canceller,
    poster,
    burst,
    uploader,
    vanisher,
    vanishing_poster,
    slow_reader,
    flooder,
    nuisance,
)


def run(site: Site, seed: str, seconds: float, clients: int) -> Tally:
    """Keep so many clients busy for so long; the kinds take turns.

    Args:
        seed: of all that they choose. When it happens depends on the machine.
    """
    return asyncio.run(_run(site, seed, seconds, clients))


async def _run(site: Site, seed: str, seconds: float, clients: int) -> Tally:
    tally, end = Tally(), time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        for number in range(clients):
            draw = Random(f"{seed} {number}")
            tasks.create_task(_client(KINDS[number % len(KINDS)], site, draw, tally, end))
    return tally


async def _client(round_of: Round, site: Site, draw: Random, tally: Tally, end: float) -> None:
    """One client after the other of that kind, until the end. What the server does wrong is noted, and the next one comes."""
    while time.monotonic() < end:
        tally.deeds[round_of.__name__] += 1
        try:
            await round_of(site, draw, tally)
        except (Broken, OSError, WebSocketException, httpx.HTTPError) as error:  # a TimeoutError is an OSError
            tally.fault(f"{round_of.__name__}: {str(error) or repr(error)}")
