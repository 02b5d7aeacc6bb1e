"""Clients of the WebSocket who keep to the rules: they listen, write while they are spoken, or cancel as often as they like."""

import asyncio
from random import Random

from benchmarks.soak.session import Session, session
from benchmarks.soak.site import Site, text_of
from benchmarks.soak.tally import Broken, Tally

RATES = (8000, 16_000, 22_050, 24_000, 44_100, 48_000)
MOST_LIVE = 8  # utterances of a session: the server's own bound


async def talker(site: Site, draw: Random, tally: Tally) -> None:
    """Some utterances, one after the other or all at once, with binary audio."""
    await _talk(site, draw, tally, "binary")


async def json_talker(site: Site, draw: Random, tally: Tally) -> None:
    """The same in JSON."""
    await _talk(site, draw, tally, "json")


async def _talk(site: Site, draw: Random, tally: Tally, transport: str) -> None:
    encoding, rate, in_start = draw.choice(("pcm16", "pcm32f")), draw.choice(RATES), draw.random() < 0.3
    async with session(site, tally, transport=transport, encoding=encoding, rate=rate, in_start=in_start) as made:
        for _ in range(draw.randint(1, 3)):
            more = {"seed": draw.randrange(2**32)} if draw.random() < 0.5 else {"temperature": draw.uniform(0.5, 1.0)}
            await made.speak(text_of(draw), priority=draw.choice(("normal", "normal", "high")), **more)
            if draw.random() < 0.7:
                await made.settled()


async def writer(site: Site, draw: Random, tally: Tally) -> None:
    """Texts that come in pieces, some of them cancelled in their middle."""
    async with session(site, tally, transport=draw.choice(("binary", "json"))) as made:
        for _ in range(draw.randint(1, 3)):
            words, request_id = text_of(draw).split(" "), ""
            cut = draw.randrange(len(words)) if draw.random() < 0.2 else None
            for number, word in enumerate(words):
                if number == 0:
                    request_id = await made.speak(f"{word} ", **{"continue": True})
                else:
                    await made.say(type="speak", text=f"{word} ", requestId=request_id, **{"continue": True})
                await asyncio.sleep(draw.uniform(0, 0.1))  # a language model writes about so fast
                if number == cut:
                    break
            if cut is not None:
                await made.cancel()
                await _nothing_lives(made)
            else:
                await made.say(type="flush", **({"requestId": request_id} if draw.random() < 0.5 else {}))
                await made.settled()


async def canceller(site: Site, draw: Random, tally: Tally) -> None:
    """Many utterances, cancelled one by one or all together, before, while and after they are spoken; some cancels cancel nothing."""
    async with session(site, tally, transport=draw.choice(("binary", "json"))) as made:
        for _ in range(draw.randint(1, 6)):
            asked = [await made.speak(text_of(draw), priority=draw.choice(("normal", "high"))) for _ in range(draw.randint(1, MOST_LIVE))]
            for _ in range(draw.choice((0, 1, 3, 10))):
                await made.hear()
            for request_id in draw.sample(asked, draw.randint(0, len(asked))):
                await made.cancel(request_id)
                tally.deeds["cancels"] += 1
            for _ in range(draw.choice((1, 1, 2, 10))):
                await made.cancel()
                tally.deeds["cancels"] += 1
            await _nothing_lives(made)


async def _nothing_lives(made: Session) -> None:
    """After a cancel of all."""
    await made.fence()
    if made.live:
        raise Broken(f"live after a cancel of all: {list(made.live)}")
