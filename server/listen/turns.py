"""Windows and their probabilities of speech -> turns. Pure: no model, socket or clock; time is the audio's own.

    (quiet) --(SUSPECTED), BEGAN--> speech --PAUSED--> pause --RESUMED--> speech      pause --OVER, or FALSE--> (quiet)

A turn is made of segments: stretches of at most 25 s that a recogniser hears at once. SETTLED: one is complete, and its turn goes on.
"""

from collections import deque
from enum import Enum
from typing import Literal

import msgspec
import numpy as np

from qwen3_jax.shapes import F32
from server.listen.base import RATE, WINDOW
from server.listen.echo import EchoGuard

Kind = Literal["vad", "semantic", "none"]
WINDOW_MS = 1000 * WINDOW // RATE
BEFORE = 16  # windows that are heard from before speech begins: its first consonant is softer than the threshold
AFTER = 5  # windows of silence that a recogniser hears after speech
PAUSE = 4  # windows of silence after which speech pauses: 128 ms
SEMANTIC_PAUSE = 6  # the same where a model judges the pause: 192 ms
HYSTERESIS = 0.15  # by which speech may be less probable once it has begun
SETTLES = 32  # windows of silence that complete a segment: 1 s
MOST_WINDOWS, LOOK_BACK = 25 * RATE // WINDOW, 5 * RATE // WINDOW  # of a segment; how far back a longer one is cut, at its least speech
MOST_TURN_MS = 300_000  # of speech; then a turn is over, whoever speaks on
PATIENCE_MS = {"low": 3000, "medium": 2000, "high": 1000}  # of silence, that end a turn which the model takes for unfinished
CERTAINTY = {"low": 0.8, "medium": 0.5, "high": 0.3}  # of the model, that ends a turn


class Detection(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What begins and ends a turn: ``vad`` ends it by silence, ``semantic`` by a model or long silence, ``none`` by ``commit`` only."""

    type: Kind = "vad"
    threshold: float = 0.5  # of the probability of speech
    silence_ms: int = 400  # that end a turn (vad)
    min_speech_ms: int = 100  # shorter speech is none
    eagerness: Literal["low", "medium", "high"] = "medium"  # to end a turn (semantic)


class TurnEvent(Enum):
    """See the module's docstring."""

    SUSPECTED = "suspected"  # speech may begin, over an answer that sounds; no turn is open yet
    BEGAN = "began"
    PAUSED = "paused"
    RESUMED = "resumed"
    SETTLED = "settled"
    OVER = "over"
    FALSE = "false"  # it was too short to be speech


class SpeechSegment:
    """A stretch of a turn. ``start`` and ``end`` are samples of the session: of the first one, and after the last one that is speech."""

    def __init__(self, start: int, windows: list[F32[np.ndarray, "512"]], end: int) -> None:
        self.start, self.windows, self.end = start, windows, end

    def pcm(self) -> F32[np.ndarray, " F"]:
        """All of it but for silence at its end."""
        return np.concatenate(self.windows)[: self.end - self.start + AFTER * WINDOW]

    @property
    def start_ms(self) -> int:
        return 1000 * self.start // RATE


class Turns:
    """The turns of one client."""

    def __init__(self, detection: Detection) -> None:
        self.detection = detection
        self.position = 0  # samples heard
        self.segment: SpeechSegment | None = None
        self._guard = EchoGuard()
        self._scores: list[float] = []  # of the segment's windows
        self.clear()

    def clear(self) -> None:
        """Forget what was heard. Time goes on."""
        self._guard.forget()
        self.open = False
        self.segment, self._scores = None, []
        self._rest: SpeechSegment | None = None  # what follows a segment that was cut
        self._rest_scores: list[float] = []
        self.begin_ms = self.end_ms = self.voiced_ms = 0  # of the turn: begin and end of its speech, how much of it is speech
        self._before: deque[F32[np.ndarray, 512]] = deque(maxlen=BEFORE)
        self._silence = 0  # windows in a row

    @property
    def position_ms(self) -> int:
        return 1000 * self.position // RATE

    @property
    def silent_ms(self) -> int:
        """For how long nobody has spoken in this turn."""
        return WINDOW_MS * self._silence

    def feed(
        self, window: F32[np.ndarray, "512"], probability: float, *, playing: bool = False, answer_db: float | None = None
    ) -> list[TurnEvent]:
        """The next window -> what it changes.

        Args:
            playing: whether an answer sounds at the client.
            answer_db: how loud it is at this moment, in dB of full scale; None where that is not known.
        """
        self.position += WINDOW
        threshold, speaking = self.detection.threshold, self.open
        judged = self._guard.judge(window, probability, threshold, playing=playing, speaking=speaking, answer_db=answer_db)
        if not self.open:
            self._before.append(window)
            return [self._begin(judged.begun)] if judged.begun else [TurnEvent.SUSPECTED] if judged.suspect else []
        speech = judged.goes_on and probability >= self.detection.threshold - HYSTERESIS
        events = self._speech(window, probability) if speech else self._pause(window, probability)
        if self.open and self.voiced_ms >= MOST_TURN_MS:
            events.append(self.finish())
        return events

    def decide(self, probability: float) -> TurnEvent | None:
        """What the model says of the pause: OVER ends the turn."""
        return self.finish() if self.open and self._silence and probability >= CERTAINTY[self.detection.eagerness] else None

    def finish(self) -> TurnEvent:
        """The turn is over, whoever says so. Its segment stays until ``clear``, or the next turn."""
        self.open = False
        self._silence = 0
        self._before.clear()
        self._guard.forget()
        return TurnEvent.OVER if self.voiced_ms >= self.detection.min_speech_ms else TurnEvent.FALSE

    def take(self) -> SpeechSegment | None:
        """The segment that is complete; the turn goes on without it."""
        segment, self.segment, self._scores = self.segment, self._rest, self._rest_scores
        self._rest, self._rest_scores = None, []
        return segment

    def _begin(self, windows: int) -> TurnEvent:
        self.open = True
        self.voiced_ms = WINDOW_MS * windows
        self.begin_ms, self.end_ms = self.position_ms - self.voiced_ms, self.position_ms
        self._silence = 0
        self._open_segment()
        return TurnEvent.BEGAN

    def _open_segment(self) -> None:
        windows = list(self._before)
        self._before.clear()
        self.segment = SpeechSegment(self.position - WINDOW * len(windows), windows, self.position)
        self._scores = [1.0] * len(windows)

    def _speech(self, window: F32[np.ndarray, "512"], probability: float) -> list[TurnEvent]:
        events = [TurnEvent.RESUMED] if self._silence >= self._pause_windows else []
        self._silence = 0
        self.voiced_ms += WINDOW_MS
        self.end_ms = self.position_ms
        if self.segment is None:
            self._before.append(window)
            self._open_segment()
        else:
            self._add(window, probability)
            self.segment.end = self.position
            if len(self.segment.windows) >= MOST_WINDOWS:
                self._cut()
                events.append(TurnEvent.SETTLED)
        return events

    def _pause(self, window: F32[np.ndarray, "512"], probability: float) -> list[TurnEvent]:
        self._silence += 1
        if self.segment is None:
            self._before.append(window)
        else:
            self._add(window, probability)
        most = {"vad": self.detection.silence_ms, "semantic": PATIENCE_MS[self.detection.eagerness]}.get(self.detection.type)
        if most is not None and self.silent_ms >= most:
            return [self.finish()]
        if self._silence == self._pause_windows:
            return [TurnEvent.PAUSED]
        return [TurnEvent.SETTLED] if self._silence >= SETTLES and self.segment is not None else []

    def _add(self, window: F32[np.ndarray, "512"], probability: float) -> None:
        assert self.segment is not None
        self.segment.windows.append(window)
        self._scores.append(probability)

    def _cut(self) -> None:
        """Cut a segment that has become long where it is least like speech."""
        assert self.segment is not None
        windows, scores = self.segment.windows, self._scores
        first = len(windows) - LOOK_BACK
        place = first + int(np.argmin(scores[first:-1])) + 1
        middle = self.segment.start + WINDOW * place
        self._rest, self._rest_scores = SpeechSegment(middle, windows[place:], self.segment.end), scores[place:]
        self.segment = SpeechSegment(self.segment.start, windows[:place], middle)

    @property
    def _pause_windows(self) -> int:
        return SEMANTIC_PAUSE if self.detection.type == "semantic" else PAUSE
