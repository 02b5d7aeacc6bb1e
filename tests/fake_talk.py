"""Listen and Speak as the contract has them, small enough to be followed by hand: they take the place of the server's own two sockets.

The microphone counts as speech while its level is above ``LOUD``. Each turn is answered by ``WORDS``, 12 frames of 80 ms; frame ``i`` of
answer ``n`` holds one value, ``100 n + i`` in PCM16. Speech over an answer ducks it; after ``CONFIRMED`` seconds of speech it is
interrupted, and if there is silence before, resumed.
"""

import asyncio
import json
from time import monotonic
from typing import Any

import numpy as np
from quart import Quart, websocket

from server.ops import connections
from tests.browser import serve_tap
from tests.fake_engine import tone

LOUD, QUIET, CONFIRMED = 0.01, 0.5, 0.3  # level; seconds of silence that end a turn; seconds of speech that interrupt
LEAD = 0.5  # seconds that audio is sent ahead
FRAME_MS = 80
WORDS = [f"word{number}" for number in range(12)]
PER_WORD = 4  # frames of a word
FRAMES = PER_WORD * len(WORDS)  # of an answer


class FakeTalk:
    """Both sockets of one client, and all that was said on them."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []  # by the page, on the Speak side
        self.listened: list[dict[str, Any]] = []  # by the page, on the Listen side
        self.sent: list[dict[str, Any]] = []  # by the Speak side
        self.turns = 0
        self.samples = 0  # of the microphone
        self.drop_after: int | None = None  # frames of an answer after which the socket is lost, once
        self._outbox: asyncio.Queue[dict[str, Any] | bytes] = asyncio.Queue()
        self._answer: asyncio.Task[None] | None = None
        self._speaking = ""  # the answer under way
        self._played: dict[str, int] = {}
        self._go = asyncio.Event()
        self._go.set()
        self._next_frame = 0
        self.lost = asyncio.Event()
        self.refusal: dict[str, Any] = {}  # in place of Listen's ``started``
        self.unanswered: dict[str, Any] = {}  # Listen's message in place of an answer
        self.capabilities: dict[str, dict[str, Any]] = {"listen": {}, "speak": {}}
        self.deaf = ""  # why there is no recogniser
        self.listens = asyncio.Event()  # before, a ``start`` of Listen is not answered
        self.listens.set()

    def install(self, app: Quart) -> None:
        """For ``running(change=...)``."""
        serve_tap(app)
        _replace(app, "/api/v1/speak", self.speak)
        _replace(app, "/api/v1/listen", self.listen)

    # The Speak side

    async def speak(self) -> None:
        here = websocket._get_current_object()
        await here.accept()
        connections.here().welcome()  # a client that is known may send as much as a microphone does
        await here.send(
            json.dumps(
                {"type": "ready", "sessionId": f"session-{len(self.said)}", "voiceLoaded": "", "capabilities": self.capabilities["speak"]}
            )
        )
        sending = asyncio.create_task(self._send(here))
        try:
            while True:
                message = json.loads(await here.receive())
                self.said.append(message)
                match message["type"]:
                    case "start":
                        self._outbox.put_nowait({"type": "started", "sampleRate": 24000, "encoding": "pcm16"})
                    case "resume":
                        self._next_frame = message["playedMs"] // FRAME_MS
                        self._forget()
                        self._outbox.put_nowait({"type": "started", "sampleRate": 24000, "encoding": "pcm16"})
                        self.lost.clear()
                    case "played":
                        self._played[message["requestId"]] = message["ms"]
                        if message["requestId"] == self._speaking and message["ms"] >= FRAMES * FRAME_MS:
                            self._speaking = ""
                    case "cancel":
                        self.cancel(message["requestId"])
        finally:
            sending.cancel()

    async def _send(self, here: Any) -> None:
        while True:
            item = await self._outbox.get()
            if self.lost.is_set():
                await here.close(1012)
                return
            if isinstance(item, dict):
                self.sent.append(item)
            await here.send(json.dumps(item) if isinstance(item, dict) else item)

    def answer(self) -> None:
        """Begin the next answer."""
        self.turns += 1
        self._go.set()
        self._next_frame = 0
        self._speaking = f"answer-{self.turns}"
        self._answer = asyncio.create_task(self._answers(self.turns, self._speaking))

    async def _answers(self, number: int, request_id: str) -> None:
        begun = None
        for index, word in enumerate(WORDS):
            self._outbox.put_nowait({"type": "answer", "requestId": request_id, "text": f"{word} ", "isFinal": index == len(WORDS) - 1})
        frames = PER_WORD * len(WORDS)
        while self._next_frame < frames:
            await self._go.wait()
            begun = begun or monotonic() - self._next_frame * FRAME_MS / 1000
            await asyncio.sleep(max(0.0, begun + self._next_frame * FRAME_MS / 1000 - LEAD - monotonic()))
            if not self._go.is_set():
                begun = None
                continue
            if self.lost.is_set():
                await asyncio.sleep(0.01)
                continue
            if self._next_frame % PER_WORD == 0:
                start = self._next_frame * FRAME_MS
                timed = {"word": WORDS[self._next_frame // PER_WORD], "startMs": start, "endMs": start + PER_WORD * FRAME_MS}
                first = self._next_frame // PER_WORD
                guess = {"word": "guess", "startMs": start, "endMs": None}  # the next message has it right
                self._outbox.put_nowait({"type": "words", "requestId": request_id, "first": first, "words": [timed, guess]})
            self._outbox.put_nowait((self.frame(number, self._next_frame) * 32767).round().astype("<i2").tobytes())
            self._next_frame += 1
            if self._next_frame == self.drop_after:
                self.drop_after = None
                self.lost.set()
        self._outbox.put_nowait({"type": "complete", "requestId": request_id, "durationMs": 1, "audioLengthMs": FRAMES * FRAME_MS})

    def frame(self, number: int, index: int) -> np.ndarray:
        """80 ms of an answer."""
        return tone(number, index)

    def final(self, turn: int) -> str:
        """What was said in a turn."""
        return f"This is turn {turn}."

    def cancel(self, request_id: str) -> None:
        """Not a byte of it follows its ``CANCELLED``."""
        if self._answer is not None:
            self._answer.cancel()
        self._speaking = ""
        self._forget()
        error = {"type": "error", "code": "CANCELLED", "message": "cancelled", "recoverable": True, "final": True}
        self._outbox.put_nowait(error | {"requestId": request_id})

    def _forget(self) -> None:
        """What waits to be sent is stale."""
        while not self._outbox.empty():
            self._outbox.get_nowait()

    def duck(self) -> None:
        self._go.clear()
        self._outbox.put_nowait({"type": "ducked", "requestId": self._speaking, "atMs": self._played.get(self._speaking, 0)})

    def resume(self) -> None:
        self._outbox.put_nowait({"type": "resumed", "requestId": self._speaking})
        self._go.set()

    def interrupt(self) -> None:
        request_id = self._speaking
        heard = self._played.get(request_id, 0)
        whole = heard // (PER_WORD * FRAME_MS)
        told: dict[str, Any] = {"audioEndMs": heard, "spokenText": " ".join(WORDS[:whole]), "remainingText": " ".join(WORDS[whole:])}
        self._forget()
        self._outbox.put_nowait({"type": "interrupted", "requestId": request_id} | told)
        if self._answer is not None:
            self._answer.cancel()
        self._speaking = ""
        error = {"type": "error", "code": "CANCELLED", "message": "interrupted", "recoverable": True, "final": True}
        self._outbox.put_nowait(error | {"requestId": request_id})

    # The Listen side

    async def listen(self) -> None:
        here = websocket._get_current_object()
        await here.accept()
        connections.here().welcome()  # a client that is known may send as much as a microphone does
        await here.send(json.dumps({"type": "ready", "sessionId": "listen-1", "capabilities": self.capabilities["listen"]}))
        if self.deaf:
            error = {"type": "error", "code": "RECOGNITION_ERROR", "message": self.deaf, "recoverable": False, "final": True}
            await here.send(json.dumps(error))
            await here.close(1011)
            return
        speech = silence = 0.0
        turn = 0
        ducked = False
        while True:
            frame = await here.receive()
            if isinstance(frame, str):
                message = json.loads(frame)
                self.listened.append(message)
                if message["type"] == "start":
                    await self.listens.wait()
                    await here.send(json.dumps(self.refusal or {"type": "started", "sampleRate": 16000}))
                continue
            pcm = np.frombuffer(frame, "<i2").astype(np.float32) / 32767
            self.samples += len(pcm)
            seconds, loud = len(pcm) / 16000, bool(np.sqrt(np.mean(pcm**2)) > LOUD)
            now = 1000 * self.samples // 16000
            if loud and speech == 0:
                await here.send(json.dumps({"type": "speechStarted", "audioMs": now}))
                if self._speaking:
                    self.duck()
                    ducked = True
            if loud or speech:
                speech += seconds
                silence = 0.0 if loud else silence + seconds
            if speech and loud:
                await here.send(json.dumps({"type": "partial", "text": f"turn {turn + 1}, {speech:.1f} s", "audioMs": now}))
            if ducked and self._speaking and speech - silence > CONFIRMED:
                self.interrupt()
                ducked = False
            if speech and silence > QUIET:
                if ducked and self._speaking:
                    self.resume()  # it was a cough
                else:
                    turn += 1
                    text = {"type": "final", "text": self.final(turn), "startMs": 0, "endMs": now, "language": "English"}
                    await here.send(json.dumps(text))
                    if self.unanswered:
                        await here.send(json.dumps(self.unanswered))
                    else:
                        self.answer()
                ducked, speech, silence = False, 0.0, 0.0


def _replace(app: Quart, path: str, view: Any) -> None:
    """Let a WebSocket's path be answered by ``view``, whether the server has it or not."""
    rule = next((rule for rule in app.url_map.iter_rules() if rule.rule == path and rule.websocket), None)
    if rule is None:
        app.websocket(path)(view)
    else:
        app.view_functions[rule.endpoint] = view
