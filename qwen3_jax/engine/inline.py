"""The engine without a thread: requests are spoken in the caller's, when it calls ``run_round``, by the same scheduler and programs.

    inline = Inline(model, slots=1, first=1, each=4)
    handle = inline.submit(request)
    while (packet := inline.next(handle)) is not None: ...

Time stands still here: nobody is late, and a caller may take as long as it likes between two rounds.
"""

from collections import deque
from functools import partial

from qwen3_jax.engine.device import JaxDevice
from qwen3_jax.engine.options import Counters, Options
from qwen3_jax.engine.pace import Flight, Pace
from qwen3_jax.engine.requests import Handle, Packet, Request
from qwen3_jax.engine.scheduler import Scheduler
from qwen3_jax.engine.segment import MOST
from qwen3_jax.engine.slots import NEVER, Device, Slot
from qwen3_jax.model.decode import TOGETHER
from qwen3_jax.model.model import Model

BATCHES = (1, 2, 4, 8, 16, 32)  # sizes of a batch; a program each
COLUMNS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # of the KV caches, which grow; a step each: most sentences need the first
PIECES = (16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 512)  # of a prompt; at full size on two cores each row that pads it costs 5 ms
FRAMES = TOGETHER  # of a launch: the program that all calls share, as long as they ask for no more at once


class Steady(Pace):
    """So many frames first, so many each time after, whatever the clock says."""

    def __init__(
        self, device: Device, slots: list[Slot], flights: deque[Flight], options: Options, counters: Counters, started: float,
        *, first: int, each: int, ahead: int,
    ) -> None:  # fmt: skip
        super().__init__(device, slots, flights, options, counters, started)
        self._first, self._each, self.ahead = first, each, ahead

    @property
    def queue(self) -> int:
        return MOST

    def budget(self, now: float) -> int:
        return NEVER

    def next(self, now: float) -> tuple[int | None, list[int], int]:
        return None, *self.quotas(now)

    def hold(self, now: float) -> float:
        return 0.0

    def quotas(self, now: float) -> tuple[list[int], int]:
        quotas = [0 if not slot.speaking else self._each if slot.launched else self._first for slot in self.slots]
        return quotas, max(quotas)

    def first_packet(self) -> int:
        return 1


class Inline:
    """A device and its scheduler, for one thread.

    Args:
        model: the checkpoint.
        slots: requests that speak at a time; more wait in line. The next one of BATCHES is computed.
        first, each: frames of a request's first packet, and of those that follow.
        ahead: whether the device works on the next step while the caller has the last one's packets.
        hidden: packets have the talker's hidden states.
    """

    def __init__(self, model: Model, *, slots: int, first: int, each: int, ahead: bool = False, hidden: bool = False) -> None:
        rows = next((size for size in BATCHES if size >= slots), BATCHES[-1])
        self.device = JaxDevice(
            model,
            slots=rows,
            columns=COLUMNS,
            frames=max(FRAMES, first, each),
            rows=(rows,),
            pieces=PIECES,
            wide=False,
            together=True,
            hidden=hidden,
        )
        pace = partial(Steady, first=first, each=each, ahead=int(ahead))
        self._scheduler = Scheduler(self.device, Options(max_waiting=MOST), lambda: 0.0, pace=pace)

    def submit(self, request: Request) -> Handle:
        """Queue a request. Raises ValueError if it does not fit, or would make NaN."""
        handle = Handle(request, lambda: None, 0.0)
        self._scheduler.submit(handle)
        return handle

    def run_round(self) -> None:
        """Move every request on by one step."""
        self._scheduler.run_round()

    def next(self, handle: Handle) -> Packet | None:
        """The request's next packet; None at its end.

        Raises:
            EngineError: what the request died of, after all audio that was made before; or what `Handle.fail` was given.
            Exception: what a step raised. The request ends: it has failed, or is cancelled where the step was interrupted (Ctrl-C).
        """
        while (packet := handle.take()) is None and not handle.done:
            try:
                self.run_round()
            except BaseException as error:  # the caches were given to a step whose results are lost, so the request cannot go on
                if isinstance(error, Exception):
                    handle.fail(error)
                else:
                    handle.cancel()
                raise
        if packet is None and handle.error is not None:
            raise handle.error
        return packet
