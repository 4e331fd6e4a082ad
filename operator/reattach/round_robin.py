"""Queue in which groups take turns, so that no group delays another by the number of its items."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Group = TypeVar("Group", bound=Hashable)
Item = TypeVar("Item", bound=Hashable)


class RoundRobin(Generic[Group, Item]):
    """Items of several groups: first in, first out within a group, and one item per turn.

    Every operation takes constant time. A group without items takes no memory, unless it is
    suspended. The truth value is whether `pop` has an item to return.
    """

    def __init__(self) -> None:
        self._turns: OrderedDict[Group, OrderedDict[Item, None]] = OrderedDict()
        self._suspended: dict[Group, OrderedDict[Item, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._turns)

    def count(self, group: Group) -> int:
        """Return the number of items of a group."""
        return len(self._suspended.get(group) or self._turns.get(group) or ())

    def put(self, group: Group, item: Item) -> None:
        """Add an item that the group lacks. A group that had no items gets the last turn."""
        items = self._suspended.get(group)
        if items is None:
            items = self._turns.setdefault(group, OrderedDict())
        items[item] = None

    def pop(self) -> Item:
        """Remove and return the next item of the group whose turn it is.

        Raises `KeyError` if no group has a turn.
        """
        group, items = self._turns.popitem(last=False)
        item, _ = items.popitem(last=False)
        if items:
            self._turns[group] = items
        return item

    def remove(self, group: Group, item: Item) -> None:
        """Remove an item of a group that is not suspended."""
        del self._turns[group][item]
        if not self._turns[group]:
            del self._turns[group]

    def suspend(self, group: Group) -> None:
        """Give the group no turn until `resume`. It must not be suspended yet."""
        self._suspended[group] = self._turns.pop(group, OrderedDict())

    def resume(self, group: Group) -> None:
        """Give a suspended group the last turn, if it has items."""
        if items := self._suspended.pop(group):
            self._turns[group] = items
