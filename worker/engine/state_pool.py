"""Slots of recurrent state: one for each running sequence, and checkpoints that hold the state at a block boundary.

A slot is free, running (a sequence updates it in place) or a checkpoint; free + running + checkpoints = total, always.
Running sequences never wait for a slot: checkpoints have a number of their own. They come in two classes:

- *kept*: where prompts end and where prompts part; what later requests will most likely ask for.
- *passing*: the newest boundary that one sequence has passed. There is one for each sequence, and it moves with the
  sequence, so a long answer costs one slot, however long. All together take no more than a share, so that many
  answers at once do not push the prompts out.

Next: worker/engine/state_ledger.py
"""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(slots=True)
class _Checkpoint:
    slot: int
    passing: bool
    pins: int = 0
    # False until the copy into it has run; nobody finds it before.
    filled: bool = False


class StatePool:
    """Who holds which slot, and which prefix each checkpoint stands for; least recently used first out.

    Args:
        max_running: slots for running sequences.
        max_checkpoints: most checkpoints.
        max_passing: most of them that are passing; at least 1 where there are any.
    """

    def __init__(self, max_running: int, max_checkpoints: int, max_passing: int) -> None:
        self.num_slots = max_running + max_checkpoints
        self.max_checkpoints = max_checkpoints
        self._max_passing = max_passing
        # The last one freed goes first, so that slots that were never needed take no memory on a CPU.
        self._free = list(range(self.num_slots))[::-1]
        self._running: set[int] = set()
        self._checkpoints: OrderedDict[bytes, _Checkpoint] = OrderedDict()
        self._num_passing = 0

    @property
    def num_free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    @property
    def num_running(self) -> int:
        """Slots that sequences hold."""
        return len(self._running)

    @property
    def num_checkpoints(self) -> int:
        """Slots that hold a checkpoint, or are about to."""
        return len(self._checkpoints)

    @property
    def num_passing(self) -> int:
        """Checkpoints of the passing class."""
        return self._num_passing

    @property
    def num_pinned(self) -> int:
        """Checkpoints that are being copied from or to."""
        return sum(checkpoint.pins > 0 for checkpoint in self._checkpoints.values())

    # --- running sequences

    def take(self) -> int:
        """Return a slot for one sequence; what it holds is undefined."""
        assert self._free, "more sequences than slots"
        slot = self._free.pop()
        self._running.add(slot)
        return slot

    def give_back(self, slot: int) -> None:
        """Free a sequence's slot."""
        self._running.remove(slot)
        self._free.append(slot)

    # --- checkpoints

    def has(self, key: bytes) -> bool:
        """Return whether the state after a prefix can be copied from here."""
        checkpoint = self._checkpoints.get(key)
        return checkpoint is not None and checkpoint.filled

    def touch(self, key: bytes, keep: bool) -> bool:
        """Note a use of a checkpoint, and keep it where asked to; False where there is none, nor one in the making."""
        checkpoint = self._checkpoints.get(key)
        if checkpoint is None:
            return False
        self._checkpoints.move_to_end(key)
        if keep and checkpoint.passing:
            checkpoint.passing = False
            self._num_passing -= 1
        return True

    def pin(self, key: bytes, keep: bool) -> int:
        """Return the slot of a checkpoint, which stays as it is until `unpin`.

        Args:
            key: of the prefix; `has` said yes.
            keep: move it to the kept class, since it is of use to more than the one who left it.
        """
        assert self.has(key), "a checkpoint that is not here"
        self.touch(key, keep)
        checkpoint = self._checkpoints[key]
        checkpoint.pins += 1
        return checkpoint.slot

    def unpin(self, key: bytes) -> None:
        """Let a checkpoint go again."""
        checkpoint = self._checkpoints[key]
        assert checkpoint.pins > 0, "a checkpoint was unpinned twice"
        checkpoint.pins -= 1

    def reserve(self, key: bytes, passing: bool, instead_of: bytes | None = None) -> int | None:
        """Return a slot to copy a state into, pinned until `publish` or `discard`; None where there is no room.

        Args:
            key: of the prefix; there is no checkpoint of it.
            passing: which class.
            instead_of: the checkpoint that goes for it, if it is still here, passing and not pinned.
        """
        assert key not in self._checkpoints, "a prefix has one checkpoint"
        old = None if instead_of is None else self._checkpoints.get(instead_of)
        if passing and instead_of is not None and old is not None and old.passing and not old.pins:
            self._drop(instead_of)
        elif not self._make_room(passing):
            return None
        slot = self._free.pop()
        self._checkpoints[key] = _Checkpoint(slot, passing, pins=1)
        self._num_passing += passing
        return slot

    def publish(self, key: bytes) -> None:
        """The copy has run: from now on the checkpoint is found."""
        self._checkpoints[key].filled = True
        self.unpin(key)

    def discard(self, key: bytes) -> None:
        """The copy has not run: free the slot again."""
        assert not self._checkpoints[key].filled, "a checkpoint that others may hold"
        self._drop(key)

    def _make_room(self, passing: bool) -> bool:
        if passing and self._num_passing >= self._max_passing:
            return self._evict(passing_alone=True)
        return len(self._checkpoints) < self.max_checkpoints or self._evict(passing_alone=False)

    def _evict(self, passing_alone: bool) -> bool:
        for key, checkpoint in self._checkpoints.items():
            if not checkpoint.pins and (checkpoint.passing or not passing_alone):
                self._drop(key)
                return True
        return False

    def _drop(self, key: bytes) -> None:
        checkpoint = self._checkpoints.pop(key)
        self._num_passing -= checkpoint.passing
        self._free.append(checkpoint.slot)
