"""A server that has no quiet minute: clients of every kind, most of them rude, and one that wants to hear a sentence now and then.

    python -m benchmarks.soak --minutes 10
    python -m benchmarks.soak --minutes 10 --strict --seed 7 --out soak

Starts one server with the small voice and the keys of two principals. The loud one's twelve clients talk, write, cancel, post, upload,
vanish, read slowly, flood without a token, and send nonsense; the quiet one measures its first audio alone, then beside them. Then
everything has to be as it was before, the tallies have to agree, and SIGTERM has to end the server. Prints what had to hold; the status is
1 if something did not.

The ratio of the quiet one's waits is printed, and counts only with ``--strict``: the clients share the machine's cores with the server,
so on a small machine it says as much of them as of the server.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

from benchmarks.soak import load
from benchmarks.soak.conditions import Condition, SoakFigures, as_json, ends_of, judge
from benchmarks.soak.posters import SPEAKERS, clean, client, speech
from benchmarks.soak.process import Look, Server
from benchmarks.soak.quiet import Waits, farewell, sentences
from benchmarks.soak.site import Site
from benchmarks.soak.tally import Tally

WARM_SECONDS, ALONE_SECONDS = 15.0, 30.0  # pools, caches and heaps have their size before anything is compared
SETTLE_SECONDS = 90.0  # for clients that read nothing: the server's longest limit is 60 s
PROGRESS_SECONDS, WATCH_SECONDS = 10.0, 5.0


class Soak:
    """One run."""

    def __init__(self, server: Server, seed: int, minutes: float, clients: int, alone: float) -> None:
        self._server, self._seed, self._minutes, self._clients = server, seed, minutes, clients
        self._alone = alone
        self._site, self._begun, self._phase = Site(server.port, server.loud), time.monotonic(), ""
        self._tally = Tally()
        self._memory: list[tuple[float, float]] = []

    async def run(self, pool: ProcessPoolExecutor) -> SoakFigures:
        """All phases, one after the other."""
        progress = asyncio.create_task(self._progress())
        async with client(self._site) as http:
            for voice in SPEAKERS:  # prompts of all of them are kept from now on
                await speech(http, self._tally, "Yes.", voice=voice, response_format="pcm")
        await self._loud(pool, "warming up", WARM_SECONDS)
        before = await self._settled("settling")
        self._phase, end = "the quiet one alone", time.monotonic() + self._alone
        alone = await self._quiet("alone", lambda: time.monotonic() >= end)
        watch = asyncio.create_task(self._watch())
        beside = await self._loud(pool, "load", 60 * self._minutes)
        watch.cancel()
        after = await self._settled("settling again")
        metrics = await asyncio.to_thread(self._server.metrics)
        progress.cancel()
        self._phase = "going down"
        seconds, status, untold = await farewell(self._site, self._server.process)
        return SoakFigures(
            minutes=round(WARM_SECONDS / 60 + self._minutes, 2),
            tally=self._tally,
            metrics=metrics,
            before=before,
            after=after,
            memory=self._memory,
            alone=alone,
            beside=beside,
            log=self._server.read_log(),
            end_seconds=round(seconds, 2),
            status=status,
            untold=untold,
        )

    async def _loud(self, pool: ProcessPoolExecutor, phase: str, seconds: float) -> Waits:
        """The loud clients, and the quiet one beside them."""
        self._phase, loop = phase, asyncio.get_running_loop()
        loud = loop.run_in_executor(pool, load.run, self._site, f"{self._seed} {phase}", seconds, self._clients)
        waits = await self._quiet(phase, loud.done)
        self._tally.add(await loud)
        return waits

    async def _quiet(self, phase: str, over: Callable[[], bool]) -> Waits:
        return await sentences(self._site, self._server.quiet, Random(f"{self._seed} quiet {phase}"), self._tally, over)

    async def _settled(self, phase: str) -> Look:
        """Wait until nobody is there but who looks; what is still there at the end of SETTLE_SECONDS is found by the conditions."""
        self._phase, end = phase, time.monotonic() + SETTLE_SECONDS
        async with client(self._site) as http:
            await clean(http)
        while True:
            look = self._server.look(await asyncio.to_thread(self._server.metrics))
            if (look.slots, look.queue, look.sessions, look.connections) == (0, 0, 0, 1) or time.monotonic() > end:
                return look
            await asyncio.sleep(1)

    async def _watch(self) -> None:
        """The server's memory while it is loaded."""
        begun = time.monotonic()
        while True:
            self._memory.append((round(time.monotonic() - begun, 1), round(self._server.memory(), 1)))
            await asyncio.sleep(WATCH_SECONDS)

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            metrics = await asyncio.to_thread(self._server.metrics)
            look, ends = self._server.look(metrics), ends_of(metrics)
            seen = f"slots {look.slots}, queue {look.queue}, sessions {look.sessions}, connections {look.connections}, "
            seen += f"threads {look.threads}, descriptors {look.descriptors}, {look.memory:.0f} MB"
            spoken = ", ".join(f"{number} {end}" for end, number in ends.items())
            print(f"{time.monotonic() - self._begun:5.0f} s, {self._phase}: {spoken}; {seen}", file=sys.stderr, flush=True)


def table(conditions: list[Condition], *, strict: bool) -> str:
    """One line a condition."""
    rows = []
    for one in conditions:
        counts = strict or not one.strict
        rows.append((("holds" if one.holds else "FAILS") if counts else ("holds" if one.holds else "no"), one.name, one.seen, one.allowed))
    width = max(len(row[1]) for row in rows)
    return "\n".join(f"{result:6}{name:{width}}  {seen}  (allowed: {allowed})" for result, name, seen, allowed in rows)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load; warming up, measuring alone and settling come besides")
    parser.add_argument("--seed", type=int, default=1, help="of all that clients choose; when it happens depends on the machine")
    parser.add_argument("--clients", type=int, default=len(load.KINDS), help="of the loud principal; the kinds take turns")
    parser.add_argument("--alone", type=float, default=ALONE_SECONDS, help="seconds for which the quiet principal is measured alone")
    parser.add_argument("--strict", action="store_true", help="the status is 1, too, if the quiet principal waits too long")
    parser.add_argument("--out", type=Path, help="a new folder for server.log and figures.json")
    arguments = parser.parse_args()
    if arguments.out is not None and arguments.out.exists():
        parser.error(f"--out {arguments.out} is there already: name a new folder")
    with tempfile.TemporaryDirectory() as spare, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        folder = arguments.out or Path(spare) / "soak"
        server = Server(folder.absolute())
        try:
            figures = asyncio.run(Soak(server, arguments.seed, arguments.minutes, arguments.clients, arguments.alone).run(pool))
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
        conditions = judge(figures)
        (folder / "figures.json").write_text(json.dumps({"seed": arguments.seed, **as_json(figures, conditions)}, indent=1))
    tally = figures.tally
    print(f"{arguments.minutes:g} minutes, seed {arguments.seed}, {arguments.clients} loud clients")
    print(f"clients' ends: {dict(tally.ends)}; errors that they were told: {dict(tally.codes)}")
    print(table(conditions, strict=arguments.strict))
    for what in tally.wrong[1:]:
        print(f"fault: {what}")
    sys.exit(any(not one.holds and (arguments.strict or not one.strict) for one in conditions))


if __name__ == "__main__":
    main()
