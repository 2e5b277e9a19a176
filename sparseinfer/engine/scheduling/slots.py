"""Slots: the caches of requests in work, and what later requests can use of them.

Whole chunks of a prompt have the same bits whatever follows them, and so have all of a prompt and
the logits behind it for the same prompt again. Keys and values of generated tokens, and of a
prompt's last chunk that is not whole, come from other arithmetic than that of a longer prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.passes import Passes


class Slot:
    """One cache, and the prompt that it begins with."""

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._cache: KVCache | None = None
        self._ids = np.empty(0, dtype=np.int64)
        self.passes: Passes | None = None
        """What computed the cache."""
        self.stored = 0
        """Positions that were computed as the prompt's: whole chunks, or all of it."""
        self.logits: Tensor | None = None
        """[V] behind the prompt, once all of it is stored."""
        self.used = 0
        """When it was last taken: a count, 0 for never."""

    @property
    def cache(self) -> KVCache:
        """Of the request that has the slot."""
        assert self._cache is not None  # there is one from `begin` on
        return self._cache

    def shares(self, ids: np.ndarray, passes: Passes) -> int:
        """Positions of a prompt [T] that are stored here as they would be computed for it: whole
        chunks, or all of it where the logits are here too."""
        if passes is not self.passes:
            return 0
        most = min(self.stored, len(ids))
        differing = np.flatnonzero(self._ids[:most] != ids[:most])
        same = int(differing[0]) if len(differing) else most
        if same == len(ids) == self.stored and self.logits is not None:
            return same
        # The last chunk is computed anew even if it is here: its logits are wanted.
        return min(same, len(ids) - 1) // self._chunk * self._chunk

    def loses(self, shared: int) -> bool:
        """Whether whole chunks would be lost if only `shared` positions were kept."""
        return self.stored // self._chunk > shared // self._chunk

    def begin(self, ids: np.ndarray, passes: Passes, shared: int) -> None:
        """Starts on a prompt [T], of which `shared` positions are here."""
        if self._cache is None or self.passes is not passes:
            self._cache = passes.runner.new_cache()
        self._cache.truncate(shared)
        if shared < len(ids):
            self.logits = None
        self._ids, self.passes, self.stored = ids, passes, shared

    def add(self, logits: Tensor) -> None:
        """Notes that the cache has grown by a chunk of the prompt, and the logits [V] behind it."""
        self.stored = self.cache.length
        if self.stored == len(self._ids):
            self.logits = logits

    def copy(self, source: Slot, shared: int) -> None:
        """Takes positions up to `shared` from another slot, which has them for this prompt."""
        self.cache.extend_from(source.cache, shared)
        self.stored = shared
        if shared == len(self._ids):
            self.logits = source.logits

    def clear(self) -> None:
        """Lets go of everything."""
        self._cache, self.passes, self.stored, self.logits = None, None, 0, None


class Slots:
    """All slots of a scheduler.

    Args:
        chunk: tokens of a prompt that are computed at once.
    """

    def __init__(self, count: int, chunk: int) -> None:
        self._all: Sequence[Slot] = [Slot(chunk) for _ in range(count)]
        self._free = list(self._all)
        self._taken = 0

    @property
    def any_free(self) -> bool:
        return bool(self._free)

    def take(self, ids: np.ndarray, passes: Passes, *, reuse: bool = True) -> Slot:
        """A free slot for a prompt [T]: the one that has most of it, unless that would lose chunks
        that others may share; then, or where none has any, the one that was free for longest.

        Args:
            reuse: whether positions that are stored may be used at all.

        Raises:
            MemoryError, RuntimeError: there is no memory for a cache. The slot is free again.
        """
        self._free.sort(key=lambda slot: slot.used)
        slot = self._free[0]
        if reuse:
            # The first of equals: sorted by age.
            most = max(self._free, key=lambda slot: slot.shares(ids, passes))
            if not most.loses(most.shares(ids, passes)):
                slot = most
        self._free.remove(slot)
        try:
            slot.begin(ids, passes, slot.shares(ids, passes) if reuse else 0)
        except Exception:
            self.release(slot, keep=False)
            raise
        return slot

    def fill(self, slot: Slot, ids: np.ndarray) -> None:
        """Copies what any other slot has of the prompt [T] of this one."""
        assert slot.passes is not None  # it is taken
        others = (other for other in self._all if other is not slot)
        shared, source = max(
            ((other.shares(ids, slot.passes), other) for other in others),
            key=lambda pair: pair[0],
            default=(0, slot),
        )
        if shared > slot.stored:
            slot.copy(source, shared)

    def release(self, slot: Slot, *, keep: bool = True) -> None:
        """Frees a slot. What its prompt left there serves until it is taken again.

        Args:
            keep: False where the cache may hold anything.
        """
        if not keep:
            slot.clear()
        self._taken += 1
        slot.used = self._taken
        self._free.append(slot)
