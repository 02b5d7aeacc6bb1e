"""A socket on ``/api/v1/speak`` to its end. Its session may go on without it, and it may go on in a session that has lost its own."""

import asyncio
import contextlib

from server.context import Context
from server.ops.connections import here
from server.ws.connected import serve
from server.ws.outgoing import Socket
from server.ws.protocol import Close
from server.ws.session import ClientSession, Seat

CLOSE_SECONDS = 1.0  # for a socket that nobody reads any more


async def handle(socket: Socket, context: Context, address: str, token: str | None = None) -> None:
    """Serve a socket, whichever end it has; a fault of ours ends in ``error`` and 1011, never in 1000."""
    session = ClientSession(socket, context, address, token)
    seat, life = session.seat, asyncio.create_task(serve(session, context))
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
