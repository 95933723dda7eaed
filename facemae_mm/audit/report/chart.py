"""A chart as inline SVG: colours by the page's style sheet, series told apart by marker and dash as well."""

from collections.abc import Sequence
from xml.etree import ElementTree

from markupsafe import Markup

from .axis import Axis

WIDTH, HEIGHT = 420, 310
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 24, 48
#: Outlines around (0, 0); the sixth and later ones are hollow.
_MARKERS = (
    'M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z',
    'M-3.6,-3.6h7.2v7.2h-7.2z',
    'M0,-4.8L4.4,3.4H-4.4z',
    'M0,-5.2L5.2,0L0,5.2L-5.2,0z',
    'M0,4.8L4.4,-3.4H-4.4z',
    'M-4,-4L4,4M-4,4L4,-4',
    'M-5,0H5M0,-5V5',
    'M-4.5,-2.5H4.5M-4.5,2.5H4.5',
)
_DASHES = ('', '7 3', '2.5 2.5', '9 3 2 3', '5 2 1.5 2 1.5 2', '12 3', '1 3', '4 4')


def look(style: int) -> tuple[int, int, int]:
    """Numbers of a style's marker, dash and colour.

    The first eight share none; the next four share one at most with any of the twelve; 20 differ in marker or dash.
    """
    turn = style // 4 - 1
    if turn < 1:
        return style, style, style
    return 4 + (style + turn) % 4, 4 + (style + 2 * turn) % 4, 4 + (style + 3 * turn) % 4


class Chart:
    """A chart of two axes.

    Args:
        name: Its id in the page.
        title: What it shows, for those who cannot see it.
        description: What its numbers say, for the same.
        x, y: Its axes.
        whose: What tells it from like charts on the page, for the same.
        height, left: Its height and left margin, in units of which it is 420 wide.
    """

    def __init__(
        self,
        name: str,
        title: str,
        description: str,
        x: Axis,
        y: Axis,
        *,
        whose: str = '',
        height: int = HEIGHT,
        left: int = LEFT,
    ):
        self.name, self.x, self.y, self.height, self.left = name, x, y, height, left
        self.title, self.description = title, description
        self.legend: list[tuple[Markup, str]] = []
        self._svg = ElementTree.Element(
            'svg',
            {
                'class': 'chart',
                'viewBox': f'0 0 {WIDTH} {height}',
                'role': 'img',
                'aria-labelledby': f'{name}-title {name}-text',
            },
        )
        self._add(self._svg, 'title', f'{title}, {whose}' if whose else title, id=f'{name}-title')
        self._add(self._svg, 'desc', description, id=f'{name}-text')
        self._axes()

    @property
    def svg(self) -> Markup:
        """The whole element."""
        return Markup(ElementTree.tostring(self._svg, encoding='unicode'))

    def series(
        self,
        style: int,
        label: str,
        points: Sequence[tuple[float, float]],
        intervals: Sequence[tuple[float, float] | None] = (),
        shift: float = 0.0,
        markers: bool = True,
        line: bool = True,
    ) -> None:
        """Points with a line through them and bars for the intervals of y.

        Args:
            style: Number of its look, which says its marker, dash and colour.
            label: Its name in the legend.
            points: (x, y), in order.
            intervals: (low, high) of y for each point, or None where there is none.
            shift: Units to the right, so that bars of several series do not hide one another.
            markers: Whether points are marked.
            line: Whether they are joined.
        """
        group = self._group(style)
        places = [(self._left(x) + shift, self._top(y)) for x, y in points]
        if line and len(places) > 1:
            self._line(group, places, style)
        for (left, _), ends in zip(places, intervals or [None] * len(places), strict=True):
            if ends:
                self._bar(group, left, self._top(ends[0]), left, self._top(ends[1]))
        for place in places if markers else ():
            self._marker(group, style, *place)
        self.legend.append((self._swatch(style, line, markers), label))

    def steps(self, style: int, label: str, edges: Sequence[float], heights: Sequence[float]) -> None:
        """The outline of a histogram."""
        places = [(self._left(edges[0]), self._top(0))]
        for low, high, value in zip(edges[:-1], edges[1:], heights, strict=True):
            places += [(self._left(low), self._top(value)), (self._left(high), self._top(value))]
        places.append((self._left(edges[-1]), self._top(0)))
        group = self._group(style)
        outline = ' '.join(f'{left:.1f},{top:.1f}' for left, top in places)
        self._add(group, 'polygon', **{'class': 'area'}, points=outline)
        self._line(group, places, style)
        self.legend.append((self._swatch(style, True, False), label))

    def point(
        self,
        style: int,
        label: str | None,
        x: Sequence[float | None],
        y: Sequence[float | None],
        shift: float = 0.0,
    ) -> None:
        """One point, (value, low, high) each way; without a label it belongs to a series that has one."""
        group = self._group(style)
        left, top = self._left(x[0]), self._top(y[0]) + shift
        if None not in x and x[1] != x[2]:
            self._bar(group, self._left(x[1]), top, self._left(x[2]), top)
        if None not in y and y[1] != y[2]:
            self._bar(group, left, self._top(y[1]), left, self._top(y[2]))
        self._marker(group, style, left, top)
        if label is not None:
            self.legend.append((self._swatch(style, False, True), label))

    def chance(self, label: str, *lines: Sequence[tuple[float, float]]) -> None:
        """What blind luck would reach, as dotted lines through points (x, y)."""
        for points in lines:
            places = ' '.join(f'{self._left(x):.1f},{self._top(y):.1f}' for x, y in points)
            self._add(self._svg, 'polyline', **{'class': 'chance'}, points=places)
        swatch = self._swatch_of()
        self._add(swatch, 'path', **{'class': 'chance'}, d='M1,7H33')
        self.legend.append((Markup(ElementTree.tostring(swatch, encoding='unicode')), label))

    def rule(self, label: str, x: float) -> None:
        """A line across at a value of x."""
        path = f'M{self._left(x):.1f},{TOP}V{self.height - BOTTOM}'
        self._add(self._svg, 'path', **{'class': 'rule'}, d=path)
        swatch = self._swatch_of()
        self._add(swatch, 'path', **{'class': 'rule'}, d='M17,0V14')
        self.legend.append((Markup(ElementTree.tostring(swatch, encoding='unicode')), label))

    def words(self, text: str, x: float, y: float, lift: float) -> None:
        """Words that begin at (x, y), `lift` units above it."""
        place = dict(x=f'{self._left(x):.1f}', y=f'{self._top(y) - lift:.1f}')
        self._add(self._svg, 'text', text, **place, **{'class': 'name'})

    def _left(self, x: float) -> float:
        return self.left + self.x.position(x) * (WIDTH - self.left - RIGHT)

    def _top(self, y: float) -> float:
        return TOP + (1 - self.y.position(y)) * (self.height - TOP - BOTTOM)

    def _axes(self) -> None:
        bottom = self.height - BOTTOM
        for value, text in self.y.ticks:
            top = self._top(value)
            self._add(self._svg, 'path', **{'class': 'grid'}, d=f'M{self.left},{top:.1f}H{WIDTH - RIGHT}')
            place = dict(x=str(self.left - 6), y=f'{top + 4:.1f}')
            self._add(self._svg, 'text', text, **place, **{'text-anchor': 'end'})
        for value, text in self.x.ticks:
            left = self._left(value)
            self._add(self._svg, 'path', **{'class': 'axis'}, d=f'M{left:.1f},{bottom}v4')
            place = dict(x=f'{left:.1f}', y=str(bottom + 20))
            at_end = left > WIDTH - RIGHT - 12
            self._add(self._svg, 'text', text, **place, **{'text-anchor': 'end' if at_end else 'middle'})
        self._add(self._svg, 'path', **{'class': 'axis'}, d=f'M{self.left},{bottom}H{WIDTH - RIGHT}')
        middle = (self.left + WIDTH - RIGHT) / 2
        place = dict(x=f'{middle:.1f}', y=str(self.height - 8))
        self._add(self._svg, 'text', self.x.label, **place, **{'text-anchor': 'middle', 'class': 'label'})
        if self.y.label:
            self._add(self._svg, 'text', self.y.label, x='4', y='12', **{'class': 'label'})

    def _group(self, style: int) -> ElementTree.Element:
        return ElementTree.SubElement(self._svg, 'g', {'class': f'series s{look(style)[2]}'})

    def _line(self, group: ElementTree.Element, places: Sequence[tuple[float, float]], style: int) -> None:
        outline = ' '.join(f'{left:.1f},{top:.1f}' for left, top in places)
        self._add(group, 'polyline', **{'class': 'line', 'stroke-dasharray': _DASHES[look(style)[1]]}, points=outline)

    def _bar(self, group: ElementTree.Element, left: float, top: float, right: float, bottom: float) -> None:
        cap = 'h' if left == right else 'v'
        ends = f'M{left:.1f},{top:.1f}m-3,0h6' if cap == 'h' else f'M{left:.1f},{top:.1f}m0,-3v6'
        others = f'M{right:.1f},{bottom:.1f}m-3,0h6' if cap == 'h' else f'M{right:.1f},{bottom:.1f}m0,-3v6'
        between = f'M{left:.1f},{top:.1f}L{right:.1f},{bottom:.1f}'
        self._add(group, 'path', **{'class': 'bar'}, d=ends + between + others)

    def _marker(self, group: ElementTree.Element, style: int, left: float, top: float) -> None:
        number = look(style)[0]
        kind = 'marker' if number < 5 else 'marker hollow'
        place = f'translate({left:.1f},{top:.1f})'
        self._add(group, 'path', **{'class': kind}, d=_MARKERS[number], transform=place)

    def _swatch(self, style: int, line: bool, marker: bool) -> Markup:
        swatch = self._swatch_of()
        group = ElementTree.SubElement(swatch, 'g', {'class': f'series s{look(style)[2]}'})
        if line:
            self._line(group, [(1, 7), (33, 7)], style)
        if marker:
            self._marker(group, style, 17, 7)
        return Markup(ElementTree.tostring(swatch, encoding='unicode'))

    @staticmethod
    def _swatch_of() -> ElementTree.Element:
        return ElementTree.Element('svg', {'class': 'swatch', 'viewBox': '0 0 34 14', 'aria-hidden': 'true'})

    @staticmethod
    def _add(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: str) -> None:
        ElementTree.SubElement(parent, tag, attributes).text = text
