"""A table of the report's page."""

from dataclasses import dataclass, field

from .wording import interval, number, percent


@dataclass
class Table:
    """Heads and cells, ready to be shown.

    Attributes:
        caption: What it shows.
        columns: Heads of the columns; the first column names its row.
        groups: (head, number of columns) over the columns, or none.
        rows: Cells of each row: (text, interval below it or '', whether it is the worst of its column).
        marked: Number of the row that is the headline, or None.
        words: Numbers of the columns that hold words, not numbers.
        notes: What must be known to read it.
    """

    caption: str
    columns: list[str]
    groups: list[tuple[str, int]] = field(default_factory=list)
    rows: list[list[tuple[str, str, bool]]] = field(default_factory=list)
    marked: int | None = None
    words: tuple[int, ...] = ()
    notes: str = ''

    def add(self, *values: object, marked: bool = False) -> None:
        """Adds a row: text as it is, counts as numbers, [rate, low, high] as percent, None as not measured."""
        if marked:
            self.marked = len(self.rows)
        self.rows.append([self._cell(value) for value in values])

    def star(self, column: int, note: str) -> None:
        """Marks a rate of the last row by *, which a note explains, once."""
        text, *more = self.rows[-1][column]
        self.rows[-1][column] = (f'{text}\u00a0*', *more)
        if note not in self.notes:
            self.notes += note

    def mark_worst(self, column: int, rates: list[float | None]) -> None:
        """Marks the largest of a column's rates, one for each row, where there are at least two to compare."""
        known = [rate for rate in rates if rate is not None]
        if len(known) > 1:
            row = rates.index(max(known))
            self.rows[row][column] = (*self.rows[row][column][:2], True)

    @staticmethod
    def _cell(value: object) -> tuple[str, str, bool]:
        if isinstance(value, (list, tuple)):
            return percent(value[0]), interval(value), False
        return (value if isinstance(value, str) else number(value)), '', False
