"""The answer that says what was heard: for trying out a voice, a microphone or a page, with nothing else in reach."""

from collections.abc import AsyncGenerator, Sequence

from server.respond.base import Said


class Echo:
    """See ``server.respond.base.Responder``."""

    async def answer(self, history: Sequence[Said]) -> AsyncGenerator[str, None]:
        yield history[-1].text

    async def close(self) -> None: ...
