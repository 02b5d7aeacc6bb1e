"""What the sessions of all WebSocket routes share: who is admitted, how long a client may be silent, how a session ends.

``ClientSession`` (server.ws.session) speaks, ``ListenSession`` (server.ws.listen) hears; ``serve`` runs one of them to its end.
"""

import asyncio
import contextlib
import logging
import uuid
from time import monotonic
from typing import ClassVar

from qwen3_jax.messages import shorten
from server.context import Context
from server.ops.connections import here
from server.ops.logs import session_id
from server.ws import protocol
from server.ws.client import Client, Ended, no_place
from server.ws.outgoing import Outgoing, SlowClient, Socket
from server.ws.protocol import Close

ANSWERS = ("CANCELLED", "SYNTHESIS_ERROR")  # errors that are no refusals: what was asked for, and faults of ours, which the log has
EXPLAINED = ("UNAUTHORIZED", "RATE_LIMITED", "MODEL_LOADING", "TIMEOUT", "GPU_OUT_OF_MEMORY")  # they say nothing of a client's text
START_SECONDS = 60.0  # from connecting to the first message that counts
VANISHED = 1006  # the close code of a connection that ended without one (RFC 6455)
log = logging.getLogger(__name__)


class ConnectedSession:
    """A connected client.

    Args:
        address: where it comes from.
        token: from the handshake, if there was one.
    """

    ROUTE: ClassVar[str]  # for the log
    BEGINS: ClassVar[str]  # the messages that count as a beginning, for the error
    FAULT: ClassVar[protocol.Code]  # of an error that is ours

    def __init__(self, socket: Socket, context: Context, address: str, token: str | None = None) -> None:
        self.id = str(uuid.uuid4())
        self._socket, self._context, self._settings = socket, context, context.settings
        self._client, self._token = Client(context, address, self._displace), token
        self._reading: asyncio.Timeout | None = None
        self._displaced = False
        self._out = Outgoing(socket, context, self._note)
        self._connected = self._active = monotonic()
        self._begun = False  # whether the client has said anything that counts

    async def run(self) -> None:
        """Until one side ends it. A cancelled run gives up what it does."""
        session_id.set(self.id)
        try:
            await self._client.admit(self._token)
            await self._talk()
        except Ended as end:  # before it began
            await self._leave(end.last, end.code)
        finally:
            self._client.leave()

    # What a route's own session does

    async def _talk(self) -> None:
        """From ``ready`` to the end. Raises Ended."""
        raise NotImplementedError

    def _busy_until(self) -> float:
        """When something was last done for the client; ``monotonic()`` while something is."""
        raise NotImplementedError

    def _ended(self) -> None:
        """The session is over: nothing follows but its last message."""
        raise NotImplementedError

    def _counts(self) -> dict[str, object]:
        """For the log's line at the end."""
        raise NotImplementedError

    async def drain(self, grace: float) -> None:
        """The server goes down: what is under way may end within ``grace`` seconds; then goodbye."""
        raise NotImplementedError

    # What they share

    @property
    def known(self) -> bool:
        """Whether the client has said who it is, if it has to."""
        return self._client.principal is not None

    def told(self) -> None:
        """For the log: the session has closed. One whose client never said who it is has been refused, or has left before."""
        client = self._client
        if client.principal is not None:
            self._context.access.session_closed(
                {
                    "principal": shorten(client.principal.id),
                    "address": client.address,
                    "seconds": round(monotonic() - self._connected, 1),
                    **self._counts(),
                    "code": self._out.close_code or here().close_code or VANISHED,
                }
            )

    async def fail(self) -> None:
        """A fault of ours: say so and close with 1011, if the socket still takes it."""
        self._ended()
        with contextlib.suppress(SlowClient):
            await self._out.send(protocol.error(self.FAULT, "internal error; the server's log says more", recoverable=False))
            await self._out.close(Close.INTERNAL)

    async def _leave(self, last: protocol.ServerMessage, code: Close) -> None:
        self._ended()
        await self._out.send(last, code)
        await self._out.close(code)

    def _note(self, error: protocol.Error, status: int | str) -> None:
        """One line of the log, and a count, for every refusal, of whom, of a message or of a text; an idle session's end is none."""
        client = self._client
        if error.code in ANSWERS or (status == Close.IDLE and client.principal is not None):
            return
        why = error.message if error.code in EXPLAINED else ""
        self._context.access.refused(
            route=self.ROUTE, status=status, reason=error.code, address=client.address, why=why, principal=client.principal_id
        )

    async def _identify(self, token: str | None) -> None:
        """Learn who it is, if that must be known and is not, or is told anew."""
        known = self._client.principal
        if self._context.auth.required and (token is not None or known is None or await self._client.lapsed() is not None):
            await self._client.authenticate(token)

    def _displace(self) -> None:
        """Somebody else has got the place."""
        self._displaced = True
        self._look_again()

    def _look_again(self) -> None:
        """Whoever reads looks at what has changed."""
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def _receive(self) -> str | bytes | None:
        return await self._socket.receive()

    async def _next_frame(self) -> str | bytes | None:
        """The next frame. Raises Ended if a deadline passes first."""
        while True:
            wait = max(0.0, self._deadline()[0] - monotonic())
            try:
                async with asyncio.timeout(0 if self._displaced else wait) as self._reading:
                    return await self._receive()
            except TimeoutError:
                if self._displaced and self._client.principal is None:
                    raise no_place() from None
                self._displaced = False  # it came too late
                deadline, why = self._deadline()
                if monotonic() >= deadline:
                    raise Ended(Close.IDLE, protocol.error("TIMEOUT", why, recoverable=False)) from None
            finally:
                self._reading = None

    def _deadline(self) -> tuple[float, str]:
        chosen = self._settings
        if self._client.principal is None:
            return self._connected + chosen.auth_timeout, f"no valid token within {chosen.auth_timeout:g} s"
        if not self._begun:
            return self._connected + START_SECONDS, f"{self.BEGINS} within {START_SECONDS:g} s"
        return max(self._active, self._busy_until()) + chosen.idle_timeout, f"nothing to do for {chosen.idle_timeout:g} s"


async def serve(session: ConnectedSession, context: Context) -> None:
    """Run a session to its end, whichever end that is; a fault of ours ends in ``error`` and 1011, never in 1000."""
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
    finally:  # if we are cancelled here, the client has vanished
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
