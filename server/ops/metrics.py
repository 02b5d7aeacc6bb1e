"""What ``/metrics`` tells (Prometheus); one registry per application."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 5.0, 10.0, 30.0)


_OF_DEVICES = (
    ("tts_device_up", "1 if the device speaks, 0 while it is built again or after it has failed"),
    ("tts_device_slots", "Utterances that the device can speak at a time"),
    ("tts_device_active_slots", "Utterances that the device speaks"),
    ("tts_device_restarts", "Times that the device failed and was built again"),
)


class _Devices(Collector):
    """Gauges with a label for each device, which are known only when the model is loaded."""

    def __init__(self, source: Callable[[], Mapping[str, Sequence[float]]]) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        families = [GaugeMetricFamily(name, text, labels=["device"]) for name, text in _OF_DEVICES]
        for device, values in self._source().items():
            for family, value in zip(families, values, strict=True):
                family.add_metric([device], value)
        return families


class Metrics:
    """All figures of one server. ``watch`` gives the gauges their sources."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.ttfa = Histogram("tts_ttfa_seconds", "From speak to the first audio sent", registry=registry, buckets=_SECONDS)
        self.gap = Histogram("tts_inter_chunk_seconds", "Between two frames of audio", registry=registry, buckets=_SECONDS)
        self.rtf = Histogram(
            "tts_rtf",
            "Seconds per second of audio, from the turn to the last piece",
            registry=registry,
            buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
        )
        self.underrun = Counter("tts_underrun_seconds", "Silence that a listener heard inside utterances", registry=registry)
        self.audio = Counter("tts_audio_seconds", "Audio sent", registry=registry)
        self.utterances = Counter("tts_utterances", "Utterances by end", ["finish_reason"], registry=registry)
        self.requests = Counter("tts_requests", "HTTP requests for speech", ["route", "status"], registry=registry)
        self.refusals = Counter("tts_refusals", "Refusals, by HTTP status or close code", ["route", "status", "reason"], registry=registry)
        self.begun = Counter("tts_utterances_begun", "Utterances that were taken on", registry=registry)
        ends = "All that were taken on, by how they ended: completed, cancelled, failed, left (with their connection)"
        self.ended = Counter("tts_utterances_ended", ends, ["end"], registry=registry)
        self.waited = Histogram(
            "tts_queue_wait_seconds", "From the request to its turn, or to giving up", ["priority"], registry=registry, buckets=_SECONDS
        )
        self.crowded = Counter("tts_queue_refusals", "Refused: the line is full and their owner has its share of it", registry=registry)
        self.errors = Counter("tts_errors", "Errors sent, by code", ["code"], registry=registry)
        self.cancellations = Counter("tts_cancellations", "Utterances cancelled by clients", registry=registry)
        self.interruptions = Counter(
            "tts_interruptions", "Interruptions of answers: confirmed, false (resumed), requested", ["outcome"], registry=registry
        )
        self.to_duck = Histogram("tts_speech_to_duck_seconds", "From speech to ducked", registry=registry, buckets=_SECONDS)
        self.to_silence = Histogram("tts_speech_to_silence_seconds", "From speech to interrupted", registry=registry, buckets=_SECONDS)
        self.bus_lost = Counter("tts_bus_lost", "Events that other processes were not told of, for Redis was away", registry=registry)
        self.resumes = Counter("tts_session_resumes", "Sessions that came back on another socket", registry=registry)
        self.retries = Counter("tts_retries", "Utterances made again after a failure", registry=registry)
        self.refused = Counter("tts_connections_refused", "TCP connections not taken, by reason", ["reason"], registry=registry)
        self.closed = Counter("tts_connections_closed", "Connections that the server cut, by reason", ["reason"], registry=registry)
        ends = "Turns that were heard: final, empty (no words), lost (not recognised)"
        self.turns = Counter("tts_listen_turns", ends, ["end"], registry=registry)
        self.to_final = Histogram("tts_listen_final_seconds", "From the end of speech to its text", registry=registry, buckets=_SECONDS)
        self.heard = Counter("tts_listen_audio_seconds", "Audio that came in to be heard", registry=registry)
        self._gauges: list[Gauge] = []

    @contextmanager
    def wait(self, *, high: bool) -> Iterator[None]:
        """Time a wait in line, however it ends."""
        with self.waited.labels("high" if high else "normal").time():
            yield

    def watch(self, name: str, text: str, source: Callable[[], float]) -> None:
        """A gauge that asks ``source`` whenever it is read."""
        gauge = Gauge(name, text, registry=self._registry)
        gauge.set_function(source)
        self._gauges.append(gauge)

    def watch_devices(self, source: Callable[[], Mapping[str, Sequence[float]]]) -> None:
        """``source``: of each device by name, whether it speaks, its slots, those in use, its restarts."""
        self._registry.register(_Devices(source))

    def render(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)
