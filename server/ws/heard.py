"""How much of an utterance its client has heard, and the audio that may have to be sent once more. Pure: the time is an argument.

What a client reports (``played``) counts; for at most EXTRAPOLATED seconds after a report the sound is taken to have gone on. A client that
reports nothing is taken for an ideal one, which plays each frame as soon as it can: it has heard what was released, less what is ahead.
"""

from collections import deque

import msgspec

EXTRAPOLATED = 0.25  # seconds: pages report so often
SILENT_SECONDS = 2.0  # after the ideal listener's end, that a client which reports nothing more is taken to sound
KEPT_SECONDS = 40.0  # of audio that is kept for a socket that is lost, at most: what was released since the last report
UNSURE_SECONDS = 0.5  # by which a client that reports nothing may be later than an ideal one; and a report later than the one before
BRIEF_SECONDS = 3.0  # where the session may not come back, until the client's first report


class AudioFrame(msgspec.Struct, frozen=True):
    """Audio as it goes out. ``begin``: seconds from the utterance's first sample."""

    epoch: int
    data: bytes
    seconds: float
    begin: float
    final: bool = False  # the utterance's last, where that is marked

    def rest(self, begin: float, rate: int) -> "AudioFrame":
        """What of it lies after ``begin``."""
        skipped = min(max(0, round((begin - self.begin) * rate)), round(self.seconds * rate))
        if skipped == 0 or not self.data:
            return self
        width = len(self.data) // round(self.seconds * rate)
        gone = skipped / rate
        return msgspec.structs.replace(self, data=self.data[skipped * width :], seconds=self.seconds - gone, begin=self.begin + gone)


class HeardAudio:
    """Of one utterance. All times are seconds."""

    def __init__(self) -> None:
        self.released = 0.0  # audio that was sent, once or more often
        self._reported: tuple[float, float] | None = None  # (heard, when that came)
        self._kept: deque[AudioFrame] = deque()

    def sent(self, frame: AudioFrame, keep: float = KEPT_SECONDS) -> None:
        """A frame goes out. ``keep``: seconds that are kept."""
        self.released = max(self.released, frame.begin + frame.seconds)
        self._kept.append(frame)
        while self._kept[-1].begin - self._kept[0].begin > keep:
            self._kept.popleft()

    def report(self, seconds: float, now: float) -> None:
        """The client says how much has sounded; never less than before, nor more than was released."""
        known = 0.0 if self._reported is None else self._reported[0]
        seconds = min(max(known, seconds), self.released)
        self._reported = seconds, now
        while self._kept and self._kept[0].begin + self._kept[0].seconds <= seconds and not self._kept[0].final:
            self._kept.popleft()

    def drop(self) -> None:
        """It does not have to go out again."""
        self._kept.clear()

    def at(self, now: float, ahead: float) -> float:
        """How much has been heard.

        Args:
            ahead: of this utterance, seconds that an ideal listener has not heard yet.
        """
        if self._reported is None:
            return max(0.0, self.released - ahead)
        seconds, when = self._reported
        return min(self.released, seconds + min(max(0.0, now - when), EXTRAPOLATED))

    def about(self, now: float, ahead: float) -> tuple[float, float]:
        """The earliest and the latest place that may sound now; arguments as ``at``."""
        place = self.at(now, ahead)
        if self._reported is None:
            return max(0.0, place - UNSURE_SECONDS), place
        seconds, when = self._reported
        return place, max(place, min(self.released, seconds + min(now - when, UNSURE_SECONDS)))

    def again(self, begin: float) -> list[AudioFrame]:
        """What was released after that moment, to be sent once more; it counts as not heard."""
        frames = [frame for frame in self._kept if frame.begin + frame.seconds > begin or frame.final]
        self._kept.clear()
        self._reported = None
        self.released = min(self.released, begin)
        return frames
