"""The bridge between the two threads of a worker: RPC on the asyncio thread, the engine on its own.

Commands go to the engine over a thread-safe queue; each step's news come back in one call on the loop and are handed
to the streams of the gateways that they concern. The engine thread never touches a stream, the asyncio thread never
the engine (but for the item store, which has a lock).

Next: worker/service.py
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from tessera.errors import ServeError
from worker.engine.failures import failure_of
from worker.engine.output import FinishReason, LoadReport, NeedItem, SequenceUpdate, StepOutput
from worker.engine.sequence import SequenceGroup

if TYPE_CHECKING:
    from worker.engine.engine import Engine

log = structlog.get_logger(__name__)

MAX_FAILED_STEPS = 3
Command = Callable[["Engine"], None]


@dataclass
class News:
    """What a gateway is told at once: one step's news, or those of several where it reads slowly."""

    step: int
    load: LoadReport
    updates: list[SequenceUpdate] = field(default_factory=list)
    need_items: list[NeedItem] = field(default_factory=list)


class GatewayStream:
    """News for one gateway, kept until they are read; merged where it is slow. Used on the asyncio thread alone.

    Args:
        owner: what the engine knows the gateway's requests by.
    """

    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.open_choices: set[tuple[str, int, int]] = set()
        self.last_load: LoadReport | None = None
        self._news: News | None = None
        self._ends = False
        self._error: ServeError | None = None
        self._changed = asyncio.Event()

    def push(self, step: int, load: LoadReport, updates: list[SequenceUpdate], need_items: list[NeedItem]) -> None:
        """Take a step's news."""
        self.last_load = load
        if self._news is None:
            self._news = News(step, load)
        self._news.step, self._news.load = step, load
        self._news.updates += updates
        self._news.need_items += need_items
        for update in updates:
            if update.finish_reason is not None:
                self.open_choices.discard((update.request_id, update.epoch, update.choice))
        self._changed.set()

    def forget(self, request_id: str, epoch: int, choice: int | None) -> None:
        """Expect nothing more of a request, or of one choice."""
        for key in tuple(self.open_choices):
            if key[:2] == (request_id, epoch) and choice in (None, key[2]):
                self.open_choices.discard(key)
        self._changed.set()

    def end(self, error: ServeError | None = None) -> None:
        """End the stream: at once with an error, or without one when its last choice has ended."""
        self._ends = True
        self._error = self._error or error
        self._changed.set()

    async def news(self) -> AsyncIterator[News]:
        """Yield news as they come, until the stream ends.

        Raises:
            ServeError: it ended with that error.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._news is not None:
                news, self._news = self._news, None
                yield news
            if self._news is not None:
                continue  # came while the last news were being sent
            if self._error is not None:
                raise self._error
            if self._ends and not self.open_choices:
                return


class EngineBridge:
    """Runs an engine on a thread of its own.

    Args:
        build: makes the engine, on the engine's thread.
        on_ready: called on the loop with the engine once it can answer.
        on_failed: called on the loop with what went wrong: it could not be made, or it fails every step.
        heartbeat_s: seconds after which an idle engine reports its load again.
        clock: seconds, monotonic; the engine's own.
    """

    def __init__(
        self,
        build: Callable[[], "Engine"],
        on_ready: Callable[["Engine"], None],
        on_failed: Callable[[BaseException], None],
        heartbeat_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._build = build
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._streams: dict[int, GatewayStream] = {}
        self._owners = 0
        self._quiet = asyncio.Event()
        self.last_load: LoadReport | None = None
        self._loop = asyncio.get_running_loop()
        # A daemon, so that a process told to stop need not wait for a model that is still being loaded.
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    # --- on the asyncio thread

    def start(self) -> None:
        """Begin to build the engine."""
        self._thread.start()

    async def stop(self) -> None:
        """End the engine's thread after the step that it is in."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, 5.0)

    @property
    def num_open(self) -> int:
        """Choices of all gateways that have not ended."""
        return sum(len(stream.open_choices) for stream in self._streams.values())

    async def quiet(self) -> None:
        """Return once no gateway has an open choice."""
        while self.num_open:
            self._quiet.clear()
            await self._quiet.wait()

    def open_stream(self) -> GatewayStream:
        """Return the stream of a gateway that has connected."""
        self._owners += 1
        stream = self._streams[self._owners] = GatewayStream(self._owners)
        return stream

    def close_stream(self, stream: GatewayStream) -> None:
        """Forget a gateway and drop what still runs for it."""
        del self._streams[stream.owner]
        self._quiet.set()
        self._commands.put(lambda engine: engine.drop_owner(stream.owner))

    def end_streams(self, error: ServeError) -> None:
        """End every stream with an error."""
        for stream in self._streams.values():
            stream.end(error)

    def submit(self, stream: GatewayStream, group: SequenceGroup) -> None:
        """Give the engine a request; if it refuses, the stream is told."""
        stream.open_choices |= {(group.request_id, group.epoch, choice) for choice in group.choices}
        self._commands.put(lambda engine: _add(engine, group))

    def refuse(self, stream: GatewayStream, update: SequenceUpdate) -> None:
        """Tell a gateway that a request was not taken; in order with all other news."""
        self._commands.put(lambda engine: engine.tell(update))

    def cancel(self, stream: GatewayStream, request_id: str, epoch: int, choice: int | None) -> None:
        """Stop a request or one choice; nothing more is told of it."""
        stream.forget(request_id, epoch, choice)
        self._quiet.set()
        self._commands.put(lambda engine: engine.cancel(stream.owner, request_id, epoch, choice))

    def wake(self) -> None:
        """Let the engine look again: an item has come."""
        self._commands.put(lambda engine: None)

    def _ready(self, engine: "Engine", load: LoadReport) -> None:
        self.last_load = load
        self._on_ready(engine)

    def _deliver(self, output: StepOutput, beat: bool) -> None:
        """Hand a step's news to the streams; who is told nothing gets the load, if that has changed or it is time."""
        self.last_load = output.load
        updates: dict[int, list[SequenceUpdate]] = {}
        needs: dict[int, list[NeedItem]] = {}
        for update in output.updates:
            # Whoever cancels knows; a gateway that has gone cannot be told.
            if update.finish_reason is not FinishReason.CANCELLED:
                updates.setdefault(update.owner, []).append(update)
        for need in output.need_items:
            needs.setdefault(need.owner, []).append(need)
        for owner, stream in self._streams.items():
            mine, needed = updates.get(owner, []), needs.get(owner, [])
            if mine or needed or beat or output.load != stream.last_load:
                stream.push(output.step, output.load, mine, needed)
        self._quiet.set()

    # --- on the engine's thread

    def _main(self) -> None:
        try:
            engine = self._build()
        except BaseException as error:
            self._tell(self._on_failed, error)
            return
        self._tell(self._ready, engine, engine.load())
        try:
            self._serve(engine)
        except BaseException as error:
            self._tell(self._on_failed, error)

    def _serve(self, engine: "Engine") -> None:
        worked, failed, last_beat_s, preemptions = False, 0, self._clock(), 0
        while self._take_commands(engine, wait=not worked):
            try:
                output = engine.step()
            except Exception as error:
                failed += 1
                log.error("engine_failed", times=failed, exc_info=error)
                if failed >= MAX_FAILED_STEPS:
                    raise
                engine.drop_all()
                continue
            worked = output.worked
            failed = 0 if worked else failed
            now_s = self._clock()
            beat = now_s - last_beat_s >= self._heartbeat_s
            last_beat_s = now_s if beat else last_beat_s
            self._tell(self._deliver, output, beat)
            if engine.scheduler.num_preemptions > preemptions:
                count = engine.scheduler.num_preemptions - preemptions
                preemptions += count
                log.debug("sequences_preempted", count=count)

    def _take_commands(self, engine: "Engine", wait: bool) -> bool:
        """Carry out all commands, waiting for the first where there is nothing else to do; False = stop."""
        patience_s = 0.0
        if wait and not engine.has_news:
            deadline_s = engine.next_deadline_s()
            patience_s = self._heartbeat_s
            if deadline_s is not None:
                patience_s = min(patience_s, max(deadline_s - self._clock(), 0.0))
        try:
            command = self._commands.get(timeout=patience_s) if patience_s else self._commands.get_nowait()
            while command is not None:
                command(engine)
                command = self._commands.get_nowait()
        except queue.Empty:
            return True
        return False

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)


def _add(engine: "Engine", group: SequenceGroup) -> None:
    try:
        engine.add(group)
    except Exception as error:
        if not isinstance(error, ServeError):
            log.error("add_failed", request_id=group.request_id, exc_info=error)
        engine.fail(group, failure_of(error))
