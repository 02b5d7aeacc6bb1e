"""One turn, while it is heard and after: its segments -> the recogniser -> its text.

Speech that pauses is recognised at once, as if the turn were over. If it is, that text is the final one, and nothing is recognised twice.
"""

import asyncio
import re
from time import monotonic

from server.listen.base import HeardSpeech, HeardWord
from server.listen.process import RecogniserBehind, RecogniserGone, RecogniserProcess
from server.listen.turns import SpeechSegment

PARTIAL_SECONDS, PARTIAL_SHARE = 0.3, 3.0  # between two partials: at least; and so many times what the last one took
BACKCHANNELS = frozenset("ah aha hm hmm huh mhm mm mmhm mmhmm mmm oh uh uhhuh uhuh um".split())  # noqa: SIM905  # heard, but no turn
_WORD = re.compile(r"[\w'’-]+")
Piece = tuple[int, "asyncio.Task[HeardSpeech]"]  # its start in milliseconds


def words_of(text: str) -> int:
    """How many words a text has that take the floor: "mm-hm" is none."""
    return sum(re.sub(r"\W", "", word).casefold() not in BACKCHANNELS for word in _WORD.findall(text))


class TurnDropped(Exception):  # not an error
    """Nobody wants the turn's text any more."""


class HeardTurn:
    """One of them.

    Args:
        owner: whose speech it is, for the recogniser's line.
        language: as the recogniser names it; empty: it finds out.
    """

    def __init__(self, process: RecogniserProcess, owner: str, language: str) -> None:
        self._process, self._owner, self._language = process, owner, language
        self._pieces: list[Piece] = []  # complete segments
        self._ahead: tuple[int, asyncio.Task[HeardSpeech]] | None = None  # of the open segment, up to that sample
        self._partial: asyncio.Task[HeardSpeech] | None = None
        self._partial_at = monotonic()  # when the next one may begin
        self._latest = ""  # of the open segment
        self.begin_ms = self.end_ms = 0
        self.last_voice = monotonic()
        self.by_hand = False

    @property
    def text(self) -> str:
        """What is known of it so far."""
        done = [one.result().text for _, one in self._pieces if _good(one)]
        return " ".join(text for text in (*done, self._latest) if text)

    def look_ahead(self, segment: SpeechSegment) -> "asyncio.Task[HeardSpeech] | None":
        """Speech pauses: recognise the open segment. None if that is under way."""
        if self._ahead is not None and self._ahead[0] == segment.end:
            return None
        self._drop_ahead()
        self._ahead = segment.end, self._hear(segment, final=True)
        return self._ahead[1]

    def due(self) -> bool:
        """Whether a partial may be recognised now: nobody's final waits, and no more than a third of the time goes into them."""
        idle = self._partial is None or self._partial.done()
        return idle and monotonic() >= self._partial_at and not self._process.busy(self._owner)

    async def partial(self, segment: SpeechSegment) -> None:
        """Recognise the open segment as far as it has come. What goes wrong is left to the final."""
        begun = monotonic()
        self._partial_at = begun + PARTIAL_SECONDS
        self._partial = self._hear(segment, final=False)
        await asyncio.wait({self._partial})
        self._partial_at = begun + max(PARTIAL_SECONDS, PARTIAL_SHARE * (monotonic() - begun))
        if _good(self._partial):
            self.take(self._partial)

    def take(self, heard: "asyncio.Task[HeardSpeech]") -> None:
        """The open segment's text has been recognised once more."""
        self._latest = heard.result().text

    def settle(self, segment: SpeechSegment) -> None:
        """A segment is complete."""
        if self._ahead is not None and self._ahead[0] == segment.end:
            task, self._ahead = self._ahead[1], None
        else:
            self._drop_ahead()
            task = self._hear(segment, final=True)
        self._pieces.append((segment.start_ms, task))
        self._latest = ""
        if self._partial is not None:
            self._partial.cancel()

    async def result(self) -> HeardSpeech:
        """All of it, once no more comes. Times of words are the session's. Raises TurnDropped, RecogniserBehind, RecogniserGone."""
        texts, words, timed, language = list[str](), list[HeardWord](), True, self._language
        for start, task in self._pieces:
            await asyncio.wait({task})
            if task.cancelled():
                raise TurnDropped
            heard = task.result()
            texts.append(heard.text)
            language = heard.language or language
            timed = timed and heard.words is not None
            words += [self._placed(one, start) for one in heard.words or ()]
        return HeardSpeech(text=" ".join(filter(None, texts)), words=tuple(words) if timed else None, language=language)

    def _placed(self, word: HeardWord, start: int) -> HeardWord:
        """In the session's time, and inside of the turn's speech: a recogniser lets the first word begin with its audio."""
        begins, ends = (min(max(start + at, self.begin_ms), self.end_ms) for at in (word.start_ms, word.end_ms))
        return HeardWord(word=word.word, start_ms=begins, end_ms=ends)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self._drop_ahead()
        for task in (*(one for _, one in self._pieces), *(() if self._partial is None else (self._partial,))):
            task.cancel()

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead[1].cancel()
            self._ahead = None

    def _hear(self, segment: SpeechSegment, *, final: bool) -> "asyncio.Task[HeardSpeech]":
        task = asyncio.create_task(self._process.hear(segment.pcm(), self._language, self._owner, final=final))
        task.add_done_callback(_looked_at)
        return task


def _good(task: "asyncio.Task[HeardSpeech] | None") -> bool:
    return task is not None and task.done() and not task.cancelled() and task.exception() is None


def _looked_at(task: "asyncio.Task[HeardSpeech]") -> None:
    """What went wrong is told where the task is awaited, if it is."""
    if not task.cancelled() and not isinstance(task.exception(), RecogniserBehind | RecogniserGone | None):
        asyncio.get_running_loop().call_exception_handler({"message": "recognition failed", "exception": task.exception(), "task": task})
