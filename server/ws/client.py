"""Who is at the other end of a session: nobody yet, then a principal. It is counted on connecting, and holds one place until it leaves.

Those that have not said who they are have places of their own (``Quotas.newcomers``), which newcomers may take from them.
"""

import contextlib
from collections.abc import Callable

from server.context import Context
from server.ops.auth import Principal, Unauthorized
from server.ops.connections import here
from server.ops.crowd import NoPlace
from server.ops.limits import Limited, Overloaded
from server.ws import protocol
from server.ws.protocol import Close

UNKNOWN = "too many clients have not said who they are: connect again, with a token in the handshake or in start at once"


class Ended(Exception):  # not an error
    """The session is over: what to say, and the close code."""

    def __init__(self, code: Close, last: protocol.ServerMessage) -> None:
        super().__init__(code)
        self.code, self.last = code, last


class Client:
    """One of them. ``principal`` is None until a token, or a server that asks for none, says who it is.

    Args:
        address: where it comes from.
        displaced: called when the place of one that has not said who it is goes to somebody else.
    """

    def __init__(self, context: Context, address: str, displaced: Callable[[], None]) -> None:
        self.address = address
        self.principal: Principal | None = None
        self._context, self._displaced = context, displaced
        self._token: str | None = None  # that says who it is
        self._held = contextlib.ExitStack()  # a session of the principal's, or a place among the newcomers

    @property
    def principal_id(self) -> str | None:
        """For what only some may see; None: what everybody may."""
        return None if self.principal is None else self.principal.id

    async def admit(self, token: str | None) -> None:
        """Count the connection.

        Args:
            token: from the handshake, if there was one.

        Raises:
            Ended: it is one too many, or the token is no good.
        """
        auth, principal = self._context.auth, None
        somebody = auth.anonymous(self.address)
        if not auth.required:
            principal = somebody
        elif token is not None:
            with contextlib.suppress(Unauthorized):  # it is asked again below, after the connection has been counted
                principal = await auth.authenticate(token)
        try:
            await self._context.limits.count(principal or somebody, "connects")
        except Limited as error:
            raise _limited(error) from error
        if principal is not None:
            self._welcome(principal, token)
            return
        try:
            guest = self._context.limits.newcomers.enter(self.address, self._displaced)
        except NoPlace as error:
            raise no_place() from error
        self._held.callback(guest.gone)
        if token is not None:
            await self.authenticate(token)

    async def authenticate(self, token: str | None) -> None:
        """Learn who it is. Raises Ended if the token is no good, or the session is one too many of the principal's."""
        try:
            principal = await self._context.auth.authenticate(token)
        except Unauthorized as error:
            raise Ended(Close.UNAUTHORIZED, protocol.error("UNAUTHORIZED", str(error), recoverable=False)) from error
        self._welcome(principal, token)

    async def lapsed(self) -> str | None:
        """Why it is not any more who it has said to be: its token has expired, or its key has been taken away or is another's. None: it is.

        The token is looked at again, as that of each request over HTTP is.
        """
        principal = self.principal
        if principal is None or not self._context.auth.required:
            return None
        if principal.expired:
            return "the token has expired"
        try:
            now = await self._context.auth.authenticate(self._token)
        except Unauthorized as error:
            return str(error)
        return None if now.id == principal.id else "the token is another client's now"

    def leave(self) -> None:
        """It has gone: what it held is free."""
        self._held.close()

    def _welcome(self, principal: Principal, token: str | None) -> None:
        """The session is the principal's, and no stranger's any more."""
        self._held.close()
        try:
            self._held.enter_context(self._context.limits.session(principal))
        except Limited as error:
            raise _limited(error) from error
        self.principal, self._token = principal, token
        here().welcome()


def no_place() -> Ended:
    """How a session ends whose place has gone to somebody else, or that got none."""
    return Ended(Close.OVERLOADED, protocol.error("RATE_LIMITED", UNKNOWN, retry_after_ms=5000))


def _limited(error: Limited) -> Ended:
    """How a session ends that is one too many."""
    code = Close.OVERLOADED if isinstance(error, Overloaded) else Close.RATE_LIMITED
    return Ended(code, protocol.error("RATE_LIMITED", str(error), retry_after_ms=error.retry_after_ms))
