"""Requests whose prompts are being computed: a chunk of each in turns, nothing twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from sparseinfer.engine.scheduling.figures import Figures
from sparseinfer.engine.scheduling.sequence import Sequence
from sparseinfer.engine.scheduling.slots import Slots


class Prompts:
    """A queue of requests that have a slot; the first one is next.

    Args:
        chunk: tokens of a prompt that are computed at once.
        figures: what is computed or reused is counted there.
        fail: told of a request that is out of the queue and cannot go on, and why.
    """

    def __init__(
        self,
        slots: Slots,
        chunk: int,
        figures: Figures,
        fail: Callable[[Sequence, Exception], None],
    ) -> None:
        self._slots = slots
        self._chunk = chunk
        self._figures = figures
        self._fail = fail
        self._queue: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._queue)

    def add(self, one: Sequence) -> None:
        """Takes a request that has just got its slot."""
        self._reused(one, one.slot.stored)
        self._queue.append(one)

    def remove(self, one: Sequence) -> None:
        """Forgets a request that is in the queue."""
        self._queue.remove(one)

    def next(self) -> Sequence | None:
        """Takes the next request out of the queue that must compute something, or has all of its
        prompt now. Those that wait for what an earlier one computes go to the end."""
        for _ in range(len(self._queue)):
            one = self._queue.popleft()
            if one.computes_all or one.within_chunk:
                return one
            before = one.slot.stored
            try:
                self._slots.fill(one.slot, one.ticket.ids)
            except Exception as error:  # no memory to copy to
                self._fail(one, error)
                continue
            self._reused(one, one.slot.stored - before)
            if not any(other.computes_for(one, self._chunk) for other in self._queue):
                return one
            self._queue.append(one)
        return None

    def compute(self, one: Sequence, until: float) -> bool:
        """Computes the next chunk for a request out of the queue, as far as it comes until a time
        (of `time.perf_counter`). Unless that was the last one, the request is queued again.

        Returns:
            whether the chunk is finished, or has failed.
        """
        before = one.slot.stored
        try:
            finished = one.compute(self._chunk, until)
        except Exception as error:  # fails this request alone
            self._fail(one, error)
            return True
        self._figures.prompt_tokens += one.slot.stored - before
        if not finished:
            self._queue.appendleft(one)
        elif one.slot.logits is None:
            self._queue.append(one)
        return finished

    def _reused(self, one: Sequence, tokens: int) -> None:
        one.ticket.cached_tokens += tokens
        self._figures.cached_tokens += tokens
