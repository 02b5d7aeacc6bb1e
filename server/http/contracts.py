"""``POST /api/v1/contracts/{contractId}/interrupt``: speech that somebody else has heard interrupts what is spoken here."""

from typing import Annotated

import msgspec
from msgspec import Meta
from quart import Quart, Response, ResponseReturnValue, request

from server.admission import reading
from server.context import Context
from server.contracts.bus import BusDown
from server.contracts.contract import SpeechEvent
from server.http.web import HttpError, authenticated
from server.ops.auth import Principal


class InterruptRequest(msgspec.Struct, rename="camel", kw_only=True):
    """``audioEndMs``: of the utterance that sounds, the milliseconds that were heard; without it, as the server knows."""

    audio_end_ms: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


def install(app: Quart, context: Context) -> None:
    """Serve it."""

    @app.post("/api/v1/contracts/<path:contract_id>/interrupt")
    @authenticated(context)
    async def interrupt(principal: Principal, contract_id: str) -> ResponseReturnValue:
        await context.limits.count(principal, "interrupts")
        body = await request.get_data()
        try:
            asked = reading.convert(reading.decode(body), InterruptRequest) if body.strip() else InterruptRequest()
        except reading.BAD as error:
            raise HttpError(400, "INVALID_MESSAGE", reading.said(error), param=getattr(error, "field", None)) from error
        event = SpeechEvent(kind="interrupt", audio_end_ms=asked.audio_end_ms)
        contract = context.contracts.get(principal.id, contract_id)
        if contract is not None:
            contract.interrupt(asked.audio_end_ms)
            return Response(status=204)
        try:
            told = await context.contracts.bus.ask(principal.id, contract_id, event)
        except BusDown as error:
            raise HttpError(503, "BUS_DOWN", f"the contract is not in this process, and others cannot be asked: {error}", 1000) from error
        if not told:
            raise HttpError(404, "CONTRACT_NOT_FOUND", "there is no session of yours with that contractId")
        return Response(status=204)
