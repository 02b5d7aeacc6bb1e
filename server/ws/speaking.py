"""What a client asks to be spoken, or an answer of the server's -> an utterance with its voice, on its way; or why not."""

import msgspec

from qwen3_jax.text.nfc import AROUND, SLICE
from server.admission import speech
from server.admission.speech import Denied
from server.admission.text import normal_form
from server.context import Context
from server.contracts.contract import names_an_answer
from server.ops.auth import Principal
from server.ops.limits import Limited
from server.voices.store import StoredVoice
from server.ws import protocol
from server.ws.client import Client, Ended
from server.ws.machine import Late, Machine, Rejection, SessionUtterance
from server.ws.outgoing import Outgoing
from server.ws.playback import Playback
from server.ws.protocol import Close, Speak
from server.ws.turn import Configuration, Turn


class Speaking:
    """One session's. ``timed``: whether its speech may be interrupted, so that it must be known when words are heard; ``word_times``:
    whether the client wants to know that, too, of all that is spoken."""

    def __init__(self, machine: Machine, playback: Playback, out: Outgoing, client: Client, context: Context) -> None:
        self.configuration = Configuration()
        self.timed = self.word_times = False
        self._machine, self._playback, self._out, self._client, self._context = machine, playback, out, client, context

    async def speak(self, message: Speak) -> None:
        """A ``speak``. Raises Rejection, Limited, Denied or Ended."""
        if self.timed and names_an_answer(message.request_id):
            raise Rejection(
                "INVALID_MESSAGE",
                f"requestId {message.request_id!r}: answer-1, answer-2, ... are the server's own answers in this contract; use another",
                message.request_id,
            )
        principal, language = await self._admitted(message)
        if self.word_times:
            message = msgspec.structs.replace(message, word_times=True)
        if len(message.text) > SLICE:
            message = await self._normalised(message)
        await self._context.limits.count(principal, "characters", len(message.text.strip(AROUND)))
        try:
            utterance, settled, new = self._machine.speak(message)
        except Late:
            return
        if new:
            await self._begin(utterance, settled, language, principal)
        else:
            self._playback.more(utterance, settled)

    async def answer(self, text: str, request_id: str) -> SessionUtterance:
        """The first piece of an answer of the server's. Raises Rejection, Limited or Denied."""
        message = Speak(text=text, request_id=request_id, continue_=True, word_times=self.word_times)
        principal, language = await self._admitted(message)
        await self._context.limits.count(principal, "characters", len(text.strip(AROUND)))
        utterance, settled = self._machine.answer(message)
        await self._begin(utterance, settled, language, principal)
        return utterance

    async def _admitted(self, message: Speak) -> tuple[Principal, str]:
        """Who asks, and the language. Raises what stands in the way."""
        request_id, principal = message.request_id, self._client.principal
        if principal is None:
            raise Ended(
                Close.UNAUTHORIZED, protocol.error("UNAUTHORIZED", "send start with authToken first", request_id, recoverable=False)
            )
        if (why := await self._client.lapsed()) is not None:
            raise Rejection("UNAUTHORIZED", f"{why}: send start with a fresh authToken", request_id)
        language = speech.language(self._context, message.language or self.configuration.language or None)
        speech.check_engine(self._context, principal)
        return principal, language

    async def _begin(self, utterance: SessionUtterance, settled: str, language: str, principal: Principal) -> None:
        message = utterance.message
        try:
            await self._context.limits.count(principal, "utterances")
        except Limited:
            self._machine.ended(utterance)
            raise
        voice = await self._voice(message.voice, message.request_id)
        if voice is None:
            self._machine.ended(utterance)
            raise Rejection("VOICE_NOT_FOUND", "there is no voice here: an operator has to install one", message.request_id)
        if utterance.live:
            configuration = msgspec.structs.replace(self.configuration, language=language)
            self._playback.add(Turn(utterance, settled, voice, configuration, principal, timed=self.timed or message.word_times))

    async def _normalised(self, message: Speak) -> Speak:
        """With a long text's normal form, so that the machine, which lets nobody in between, has next to nothing to do."""
        try:
            text = await normal_form(message.text, self._context.settings.max_text_chars)
        except ValueError as error:
            raise Denied("text", str(error)) from error
        return msgspec.structs.replace(message, text=text)

    async def _voice(self, name: str | None, request_id: str | None) -> StoredVoice | str | None:
        """The voice of that name, else the session's, else the default one; the client hears of those that are not there."""
        for wanted in (name, self.configuration.voice):
            if wanted is not None and (found := await self.known_voice(wanted, request_id)) is not None:
                return found
        return await self._context.find_voice(self.default_voice, self._client.principal_id)

    async def known_voice(self, name: str, request_id: str | None = None) -> StoredVoice | str | None:
        """The voice of that name; None if there is none, and then the client hears of it."""
        try:
            return await speech.voice(self._context, name, self._client.principal_id)
        except Denied as error:
            message = f"{error}; the default voice is used"
            await self._out.send(protocol.error("VOICE_NOT_FOUND", message, request_id, final=False))
            return None

    @property
    def default_voice(self) -> str:
        """Its id."""
        return self._context.default_voice(self._client.principal_id)
