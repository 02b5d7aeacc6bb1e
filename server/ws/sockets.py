"""A socket on ``/api/v1/speak`` to its end. Its session may go on without it, and it may go on in a session that has lost its own."""

import asyncio
import contextlib
import logging

from server.context import Context
from server.ops.connections import here
from server.ops.logs import session_id
from server.ws.outgoing import SlowClient, Socket
from server.ws.protocol import Close
from server.ws.session import ClientSession, Seat

CLOSE_SECONDS = 1.0  # for a socket that nobody reads any more
log = logging.getLogger(__name__)


async def handle(socket: Socket, context: Context, address: str, token: str | None = None) -> None:
    """Serve a socket, whichever end it has; a fault of ours ends in ``error`` and 1011, never in 1000."""
    session = ClientSession(socket, context, address, token)
    seat, life = session.seat, asyncio.create_task(_live(session, context))
    session.life = life
    assert seat is not None
    try:
        while await _served(life, seat):
            if (moved := session.successor) is None:
                return
            session, seat = moved.session, Seat(socket)
            assert session.life is not None
            life = session.life
            session.sit(seat, moved.message)
    finally:  # if we are cancelled here, the client has vanished; if it has said goodbye, it does not come back
        if session.seat is seat and (here().close_code is not None or not session.lose(seat)):
            life.cancel()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(int(Close.GOING_AWAY))


async def _served(life: "asyncio.Task[None]", seat: Seat) -> bool:
    """Return when the session has ended (True), or goes on without that socket."""
    left = asyncio.create_task(seat.left.wait())
    try:
        await asyncio.wait({life, left}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
    return life.done()


async def _live(session: ClientSession, context: Context) -> None:
    """A session to its end."""
    task = asyncio.create_task(session.run())
    sitting = (session, task)
    context.sessions.add(sitting)
    session_id.set(session.id)
    try:
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            if _slow(error):
                log.warning("session ended: %s", _first(error))
            else:
                log.error("session failed", exc_info=error)
                await session.fail()
    finally:
        task.cancel()
        context.sessions.discard(sitting)
        session.told()


def _first(error: BaseException) -> BaseException:
    """What happened, out of the groups that tasks put it into."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _slow(error: BaseException) -> bool:
    """Whether the client, and nothing else, was the fault."""
    if isinstance(error, BaseExceptionGroup):
        return all(_slow(one) for one in error.exceptions)
    return isinstance(error, SlowClient)
