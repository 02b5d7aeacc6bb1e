"""One conversation: the sessions of one principal that a ``contractId`` joins, and when speech on one side interrupts the other. Pure.

    SILENT --speech_suspected--> SUSPECTED       answers are ducked; resumed in a moment, unless speech starts
    SILENT, SUSPECTED --speech_started--> HELD       answers are ducked; those of sessions with ``immediate`` are interrupted
    HELD --speech_goes_on: enough--> TAKEN     answers are interrupted, the epoch rises
    HELD --speech_ended, then silence--> SILENT     it was none: answers are resumed; at once after ``false_alarm``
    TAKEN --speech_ended--> SILENT     TAKEN --speech_started--> HELD

No socket, no loop: time and timers are arguments. A Mouth speaks; an ear is any object that hears.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

import msgspec

Interruption = Literal["immediate", "confirm", "off"]
Outcome = Literal["confirmed", "false", "requested"]
HELD_SECONDS = 10.0  # the longest that an answer is held: an ear that says no more has gone, in whichever process it was
SUSPECTED_SECONDS = 0.4  # that one is ducked where speech may begin, until it has
ANSWER = "answer-"  # with a number: the requestId of an answer of the server's
REPORT_SECONDS = 0.25  # between two reports to other processes that an answer sounds
SLACK_SECONDS = 0.5  # that such a report may be late


def names_an_answer(request_id: str | None) -> bool:
    """Whether an answer of the server's may have that requestId."""
    return request_id is not None and request_id.startswith(ANSWER) and request_id.removeprefix(ANSWER).isdecimal()


class Answer(Protocol):
    """An utterance that the server itself speaks, whose text comes in pieces."""

    def append(self, text: str) -> None: ...
    def finish(self) -> None: ...
    def cancel(self) -> None: ...
    async def heard(self) -> str:
        """When it has ended, and does not sound any more: the part of its text that was heard."""


class Mouth(Protocol):
    """A session that speaks, as a contract sees it. None of its methods waits."""

    @property
    def interruption(self) -> Interruption:
        """What speech does to it; ``off``: nothing. An interrupt that somebody asks for ends it all the same."""

    @property
    def speaking(self) -> bool:
        """Whether there is anything to interrupt: an utterance that is spoken or waits, or one that still sounds at the client."""

    @property
    def sounding(self) -> bool:
        """Whether audio of it sounds at the client."""

    def loudness(self, ago: float) -> float | None:
        """dB of full scale of what sounded at the client so many seconds ago, as far as is known; None if nothing sounds."""

    def duck(self) -> None:
        """Release no more audio, and keep it."""

    def unduck(self) -> None:
        """Go on from the very sample."""

    def interrupt(self, audio_end_ms: int | None, *, asked: bool) -> None:
        """End all that is spoken, or waits, at once: nothing older goes out after the acknowledgement.

        Args:
            asked: whether somebody asked for it; else speech was heard.
        """

    def answer(self, request_id: str) -> Answer:
        """Open an utterance."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class SpeechEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happens to a contract, as the bus carries it."""

    kind: Literal["suspected", "started", "goesOn", "ended", "falseAlarm", "interrupt", "sounds"]
    ms: int = 0  # goesOn: of speech so far; sounds: for how long an answer still sounds
    words: int = 0
    audio_end_ms: int | None = None


@dataclass(frozen=True)
class InterruptionRules:
    """When speech is an interruption.

    Args:
        min_ms: speech of that length is one.
        min_words: so is speech with that many recognised words.
        resume_after: seconds of silence after which speech that was none of that is forgotten.
    """

    min_ms: int = 500
    min_words: int = 1
    resume_after: float = 2.0


class SpeechState(Enum):
    """See the module's docstring."""

    SILENT = "silent"
    SUSPECTED = "suspected"
    HELD = "held"
    TAKEN = "taken"


class Contract:
    """See the module's docstring.

    Args:
        rules: when speech is an interruption.
        clock: seconds.
        later: calls a function after so many seconds.
        publish: tells other processes of an event.
        count: told how each interruption of an answer ended.
        changed: called when a session joins or leaves.
    """

    def __init__(
        self,
        rules: InterruptionRules,
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], Timer],
        publish: Callable[[SpeechEvent], None] = lambda event: None,
        count: Callable[[Outcome], None] = lambda outcome: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.epoch = 0  # rises with each interrupt
        self.state = SpeechState.SILENT
        self._rules, self._clock, self._later = rules, clock, later
        self._publish, self._count, self._changed = publish, count, changed
        self._unconfirmed = False  # whether the speech that is heard now, or was heard last, may still become an interruption
        self._held_at = 0.0  # when answers were ducked last
        self._quiet = True  # whether that speech has ended
        self._mouths: list[Mouth] = []  # in the order in which they joined
        self._ears: list[object] = []
        self._timer: Timer | None = None
        self._elsewhere = self._reported = float("-inf")  # until when an answer sounds in another process; when that was last said of ours
        self._ducked: list[Mouth] = []  # those that are ducked
        self._answers = 0

    # Sessions

    def join(self, mouth: Mouth) -> None:
        """A session that speaks. While speech is held it is ducked, too."""
        if mouth not in self._mouths:
            self._mouths.append(mouth)
            if self._holds:
                self._duck(mouth)
            self._changed()

    def attend(self, ear: object) -> None:
        """A session that hears."""
        if ear not in self._ears:
            self._ears.append(ear)
            self._changed()

    def leave(self, member: object) -> None:
        """A session has ended, whichever it was. Speech that the last ear has not confirmed was none."""
        if member in self._mouths:
            self._mouths = [mouth for mouth in self._mouths if mouth is not member]
            for mouth in self._ducked:
                if mouth is member:
                    mouth.unduck()
            self._ducked = [mouth for mouth in self._ducked if mouth is not member]
        elif member in self._ears:
            self._ears = [ear for ear in self._ears if ear is not member]
            if not self._ears:
                self.false_alarm()
                self.speech_ended()
        self._changed()

    @property
    def empty(self) -> bool:
        """Whether no session is in it."""
        return not self._mouths and not self._ears

    @property
    def attended(self) -> bool:
        """Whether a session hears, in this process."""
        return bool(self._ears)

    @property
    def mouth(self) -> Mouth | None:
        """The session that speaks, else the last one that joined."""
        speaking = [mouth for mouth in self._mouths if mouth.speaking]
        return next(reversed(speaking or self._mouths), None)

    @property
    def since_speech(self) -> float | None:
        """Seconds since answers are held for speech; None while none are."""
        return self._clock() - self._held_at if self._holds else None

    @property
    def playing(self) -> bool:
        """Whether an answer sounds at the client, in this process or another."""
        return any(mouth.sounding for mouth in self._mouths) or self._clock() < self._elsewhere

    def loudness(self, ago: float) -> float | None:
        """How loud the answer was so many seconds ago, in dB of full scale; None where that is not known: another process speaks."""
        known = [level for mouth in self._mouths if (level := mouth.loudness(ago)) is not None]
        return max(known, default=None)

    def sounds(self, seconds: float) -> None:
        """A mouth has released audio, and sounds that long from now. Other processes hear of it a few times a second."""
        now = self._clock()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._publish(SpeechEvent(kind="sounds", ms=round(1000 * seconds)))

    def next_answer(self) -> str:
        """A requestId for an answer of the server's; no two of a conversation have the same."""
        self._answers += 1
        return f"{ANSWER}{self._answers}"

    # Speech

    def speech_suspected(self) -> None:
        """Speech may begin. Where it does not, nothing is interrupted."""
        self._hear(SpeechEvent(kind="suspected"))

    def speech_started(self) -> None:
        """Speech begins, or goes on after a short silence."""
        self._hear(SpeechEvent(kind="started"))

    def speech_goes_on(self, ms: int, words: int = 0) -> None:
        """Of speech, so much has been heard. Enough of either interrupts; once for each speech."""
        self._hear(SpeechEvent(kind="goesOn", ms=ms, words=words))

    def speech_ended(self) -> None:
        """Silence again."""
        self._hear(SpeechEvent(kind="ended"))

    def false_alarm(self) -> None:
        """It was no speech."""
        self._hear(SpeechEvent(kind="falseAlarm"))

    def interrupt(self, audio_end_ms: int | None = None) -> None:
        """End what is spoken, whatever is heard; nothing where nothing is spoken, so a second one changes nothing.

        Args:
            audio_end_ms: of the utterance that sounds, how much has been heard; None: as its session knows.
        """
        self._hear(SpeechEvent(kind="interrupt", audio_end_ms=audio_end_ms))

    def _hear(self, event: SpeechEvent) -> None:
        self.apply(event)
        self._publish(event)

    def apply(self, event: SpeechEvent) -> None:
        """An event of this process, or of another."""
        if event.kind == "suspected":
            self._suspect()
        elif event.kind == "started":
            self._begin()
        elif event.kind == "goesOn":
            if event.ms >= self._rules.min_ms or event.words >= self._rules.min_words:
                self._confirm()
        elif event.kind == "ended":
            self._end()
        elif event.kind == "falseAlarm":
            if self.state is SpeechState.HELD:
                self._resume()
        elif event.kind == "interrupt":
            self._cut([*self._mouths], event.audio_end_ms, "requested")
            if self._holds:
                self._taken(confirmed=self.state is SpeechState.HELD)
        else:
            self._elsewhere = self._clock() + event.ms / 1000 + SLACK_SECONDS

    @property
    def _holds(self) -> bool:
        """Whether answers are ducked."""
        return self.state in (SpeechState.SUSPECTED, SpeechState.HELD)

    def _suspect(self) -> None:
        if not self._holds:
            self._hold(SpeechState.SUSPECTED)
            self._after(SUSPECTED_SECONDS)

    def _hold(self, state: SpeechState) -> None:
        held, self.state = self._holds, state
        if not held:
            self._held_at = self._clock()
            for mouth in self._mouths:
                self._duck(mouth)

    def _begin(self) -> None:
        self._quiet = False
        if self.state is not SpeechState.HELD:
            self._hold(SpeechState.HELD)
            self._unconfirmed = True
            self._cut([mouth for mouth in self._mouths if mouth.interruption == "immediate"], None, "confirmed")
        self._after(HELD_SECONDS)

    def _confirm(self) -> None:
        if self._unconfirmed:
            self._cut([mouth for mouth in self._mouths if mouth.interruption != "off" or mouth in self._ducked], None, "confirmed")
            self._taken(confirmed=True)

    def _taken(self, *, confirmed: bool) -> None:
        """What was spoken has been interrupted; ``confirmed``: by the speech that is heard, or was heard last."""
        self._stop_timer()
        self._ducked = []  # they have been interrupted
        self._unconfirmed = self._unconfirmed and not confirmed
        self.state = SpeechState.SILENT if self._quiet else SpeechState.TAKEN

    def _end(self) -> None:
        self._quiet = True
        if self.state is SpeechState.HELD:
            self._after(self._rules.resume_after)
        elif self.state is SpeechState.TAKEN:
            self.state = SpeechState.SILENT

    # What becomes of the answers

    def _duck(self, mouth: Mouth) -> None:
        if mouth.interruption == "confirm":
            self._ducked.append(mouth)
            mouth.duck()

    def _resume(self) -> None:
        """The speech was none. Words that are recognised late still make it one, until other speech begins."""
        self._stop_timer()
        self._quiet = self._quiet or self.state is SpeechState.HELD
        self.state = SpeechState.SILENT if self._quiet else SpeechState.TAKEN
        ducked, self._ducked = self._ducked, []
        if any(mouth.speaking for mouth in ducked):
            self._count("false")
        for mouth in ducked:
            mouth.unduck()

    def _cut(self, mouths: list[Mouth], audio_end_ms: int | None, outcome: Outcome) -> None:
        self._elsewhere = float("-inf")
        if any(mouth.speaking for mouth in mouths):
            self.epoch += 1
            self._count(outcome)
        for mouth in mouths:
            mouth.interrupt(audio_end_ms, asked=outcome == "requested")

    def _after(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self._later(seconds, self._resume)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
