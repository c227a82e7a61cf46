"""How long to wait before trying again."""

from __future__ import annotations

from attrs import define, field


@define
class Backoff:
    """Delays in seconds, each twice the one before, up to the longest."""

    first: float
    longest: float
    _next: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reset()

    def next_delay(self) -> float:
        """The delay before the next try."""
        delay = self._next
        self._next = min(2 * delay, self.longest)
        return delay

    def reset(self) -> None:
        """Begin again: the last try went well."""
        self._next = self.first
