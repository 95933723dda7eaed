"""One axis of a chart."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """From values to positions.

    Attributes:
        label: What it measures.
        low, high: Its ends; low < high, and both positive where it is logarithmic.
        ticks: (value, text) of what is written on it.
        logarithmic: Whether equal steps are equal ratios.
    """

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def position(self, value: float) -> float:
        """Where a value lies, in [0, 1]; what lies outside is drawn at the end."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @classmethod
    def of_rates(cls, label: str, rates: list[float], floor: float = 0.0) -> 'Axis':
        """An axis of percents from `floor` or below to the round number above all of some rates."""
        top = max(rates, default=1.0)
        low = min([floor, *rates])
        step = next(
            (step for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if top - low <= 5 * step + 1e-12), 0.25
        )
        first = math.floor(low / step + 1e-9)
        last = max(math.ceil(top / step - 1e-9), first + 1)
        values = [number * step for number in range(first, last + 1)]
        return cls(label, values[0], values[-1], tuple((value, f'{100 * value:.6g}\u00a0%') for value in values))

    @classmethod
    def of_counts(cls, label: str, counts: list[float]) -> 'Axis':
        """A logarithmic axis on which the counts themselves are written, where there is room for them."""
        counts = sorted(set(counts)) or [1]
        low, high = counts[0], counts[-1]
        if low == high:
            low, high = low / 2, high * 2
        margin = (high / low) ** 0.06  # bars of the first and last count stand clear of the ends
        low, high = low / margin, high * margin
        axis = cls(label, low, high, (), True)
        ticks = []
        for count in reversed(counts):
            if not ticks or axis.position(ticks[-1][0]) - axis.position(count) > 0.12:
                ticks.append((count, f'{count:,.0f}'))
        return cls(label, low, high, tuple(ticks), True)
