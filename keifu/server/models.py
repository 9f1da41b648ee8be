"""The models a server offers: loaded when first wanted, kept while used, freed when idle."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from keifu.core.errors import KeifuError, nearest
from keifu.lm.base import LM
from keifu.server.errors import ApiError, log, shown
from keifu.server.tally import Tally

State = Literal["unloaded", "loading", "ready", "failed"]


@dataclass(frozen=True)
class Offer:
    """A model as clients see it (`id`) and as the loader finds it (`source`)."""

    id: str
    source: str


def offers(sources: Sequence[str], aliases: Sequence[str] = ()) -> list[Offer]:
    """Pair models with their aliases, in order; a path without one goes by its last part."""
    if len(aliases) > len(sources):
        raise KeifuError(
            f"{len(aliases)} aliases for {len(sources)} models: give each --alias after its --model"
        )
    found = []
    for index, source in enumerate(sources):
        plain = Path(source).name if Path(source).exists() else source
        found.append(Offer(aliases[index] if index < len(aliases) else plain, source))
    ids = [offer.id for offer in found]
    if len(set(ids)) != len(ids) or not all(ids):
        raise KeifuError(f"models need different names, not {', '.join(ids)}: add --alias")
    return found


async def in_background(work: Callable[[], LM]) -> LM:
    """Run in a thread that a stopping process does not wait for: a download may take long."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[LM] = loop.create_future()

    def settle(lm: LM | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if lm is not None:
            done.set_result(lm)
        else:
            done.set_exception(error or RuntimeError("no model"))

    def run() -> None:
        result: tuple[LM | None, BaseException | None]
        try:
            result = (work(), None)
        except BaseException as error:
            result = (None, error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, *result)

    threading.Thread(target=run, daemon=True, name="keifu-load").start()
    return await done


@dataclass
class Slot:
    """One offered model and what is known of it now."""

    offer: Offer
    lm: LM | None = None
    """What newcomers get."""
    lent: Counter[LM] = field(default_factory=Counter)
    """Who works with what: also with one that was replaced meanwhile."""
    users: int = 0
    state: State = "unloaded"
    since: int = field(default_factory=lambda: int(time.time()))
    task: asyncio.Task[LM] | None = None
    timer: asyncio.TimerHandle | None = None
    closing: asyncio.Task[None] | None = None
    renewal: asyncio.Task[None] | None = None
    tally: Tally = field(default_factory=Tally)

    def card(self) -> dict[str, Any]:
        """The model's entry in /v1/models."""
        return {
            "id": self.offer.id,
            "object": "model",
            "created": self.since,
            "owned_by": "keifu",
            "root": self.offer.id,
            "parent": None,
            "max_model_len": self.lm.context if self.lm else None,
            "meta": {"state": self.state},
        }


def quiet_heap() -> None:
    """Leave what is loaded by now out of garbage collection, until the next model comes or goes.

    Walking the objects of torch and a tokenizer takes 0.1 s, for which every client waits.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class Models:
    """Looks a model up by name and lends it out; the first one is loaded at the start."""

    def __init__(
        self,
        offered: Sequence[Offer],
        load: Callable[[str], LM],
        idle_seconds: float | None = None,
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        """`settled` is called whenever a model has been loaded or freed."""
        self._load, self._idle, self._settled = load, idle_seconds, settled
        self._slots = {offer.id: Slot(offer) for offer in offered}
        self.started = False
        self.failure: BaseException | None = None

    async def start(self) -> None:
        """Load the first model; until it is there, requests for it are told to come back."""
        first = next(iter(self._slots.values()))
        try:
            async with self._using(first):
                self.started = True
        except ApiError as error:
            self.failure = error.__cause__

    async def close(self) -> None:
        """Free every model; what still runs ends as cancelled."""
        for slot in self._slots.values():
            if slot.timer:
                slot.timer.cancel()
            for task in (slot.task, slot.renewal):
                if task and not task.done():
                    task.cancel()
            if slot.closing:
                await slot.closing
            for lm in {*slot.lent, *([slot.lm] if slot.lm else [])}:
                await asyncio.to_thread(lm.close)
            slot.lm, slot.state = None, "unloaded"

    def slots(self) -> list[Slot]:
        """All models, in the order they were given."""
        return list(self._slots.values())

    def find(self, name: str | None) -> Slot:
        """The model of that name (the first if none is named); 404 with the nearest names."""
        if name is None:
            return self.slots()[0]
        if name in self._slots:
            return self._slots[name]
        close = nearest(name[:200], self._slots) or list(self._slots)[:3]
        text = f"no model {shown(name)} here; there is {', '.join(close)}"
        raise ApiError(404, text, code="model_not_found", param="model")

    @asynccontextmanager
    async def lend(self, name: str | None) -> AsyncIterator[LM]:
        """The named model, loaded if need be, and kept loaded until the borrower is done."""
        slot = self.find(name)
        if not self.started and slot is self.slots()[0]:
            if self.failure is not None:
                raise self._failed(slot, self.failure)
            text = f"{slot.offer.id} is still loading"
            raise ApiError(503, text, code="model_loading", retry_after=1)
        async with self._using(slot) as lm:
            yield lm

    @asynccontextmanager
    async def _using(self, slot: Slot) -> AsyncIterator[LM]:
        slot.users += 1
        if slot.timer:
            slot.timer.cancel()
            slot.timer = None
        lm: LM | None = None
        try:
            loaded = await self._ready(slot)
            lm = slot.lm or loaded  # replaced since?
            slot.lent[lm] += 1
            yield lm
        finally:
            slot.users -= 1
            if lm is not None:
                self._returned(slot, lm)
            if slot.users == 0 and slot.lm is not None and self._idle is not None:
                loop = asyncio.get_running_loop()
                slot.timer = loop.call_later(self._idle, self._unload, slot)

    def _returned(self, slot: Slot, lm: LM) -> None:
        """One user fewer; the last one of a model that was replaced leaves it to be freed."""
        slot.lent[lm] -= 1
        if not slot.lent[lm]:
            del slot.lent[lm]
            if lm is not slot.lm and slot.lm is not None:
                slot.closing = asyncio.create_task(self._free(lm))

    async def reload(self, name: str | None) -> Slot:
        """Read the named model's files again: who works with it ends with the old weights, who
        comes after gets the new ones. Both are in memory meanwhile; where they do not fit, or the
        files are no good, the old one stays.
        """
        slot = self.find(name)
        if slot.renewal is None:
            slot.renewal = asyncio.create_task(self._renew(slot))
        try:
            await asyncio.shield(slot.renewal)
        except (asyncio.CancelledError, ApiError):
            raise
        except Exception as error:
            raise self._failed(slot, error) from error
        return slot

    async def _renew(self, slot: Slot) -> None:
        try:
            fresh = slot.lm is None
            async with self._using(slot):
                if not fresh:
                    slot.lm = await self._read(slot)
        except Exception as error:
            self._log(slot, error)
            raise
        finally:
            slot.renewal = None

    async def _read(self, slot: Slot) -> LM:
        began = time.monotonic()
        lm = await in_background(lambda: self._load(slot.offer.source))
        self._settled()
        slot.since = int(time.time())
        log.info("%s loaded in %.2f s", slot.offer.id, time.monotonic() - began)
        return lm

    def _log(self, slot: Slot, error: Exception) -> None:
        if not self.started and slot is self.slots()[0]:
            pass  # the process ends with this error, and says it then
        elif isinstance(error, KeifuError):
            log.error("%s cannot be loaded: %s", slot.offer.id, error)
        elif not isinstance(error, ApiError):  # that was said before
            log.error("%s cannot be loaded", slot.offer.id, exc_info=error)

    async def _ready(self, slot: Slot) -> LM:
        if slot.lm is not None:
            return slot.lm
        if slot.task is None:
            slot.task = asyncio.create_task(self._fetch(slot))
        try:
            return await asyncio.shield(slot.task)  # one waiter that leaves must not stop the rest
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise self._failed(slot, error) from error

    async def _fetch(self, slot: Slot) -> LM:
        slot.state = "loading"
        try:
            if slot.closing:
                await slot.closing
            slot.lm, slot.state = await self._read(slot), "ready"
            return slot.lm
        except Exception as error:
            slot.state = "failed"
            self._log(slot, error)
            raise
        finally:
            slot.task = None

    def _failed(self, slot: Slot, error: BaseException) -> ApiError:
        """What a client may know of a failed load: not the paths that its message may hold."""
        text = f"{slot.offer.id} cannot be loaded; the server's log says why"
        failed = ApiError(503, text, code="model_load_failed", retry=False)
        failed.__cause__ = error
        return failed

    def _unload(self, slot: Slot) -> None:
        lm, slot.lm, slot.state, slot.timer = slot.lm, None, "unloaded", None
        assert lm is not None  # whoever takes the model stops the timer
        log.info("%s freed after %g s without work", slot.offer.id, self._idle)
        slot.closing = asyncio.create_task(self._free(lm))

    async def _free(self, lm: LM) -> None:
        await asyncio.to_thread(lm.close)
        del lm
        self._settled()
