"""How numbers and names of an audit are written for people."""

from collections.abc import Sequence

NOT_MEASURED = '–'
_SPACE = '\u00a0'
_PAIRINGS = {
    'original_original': 'Original → original',
    'original_released': 'Original → released',
    'released_released': 'Released → released',
}
COUNTED = {'without': 'without the same source', 'with': 'every released face'}
NOT_FROM_THIS_PHOTO = 'faces made from that very photo left out'


def share(value: float | None) -> str:
    """A rate in percent, without its sign '%': one decimal, more where it would round to nothing or to everything."""
    if value is None:
        return NOT_MEASURED
    percent = 100 * value
    size = abs(percent)
    if 0 < size < 1e-4:
        return '<0.0001' if percent > 0 else '>−0.0001'
    if size < 0.095 and size:
        text = f'{percent:.2g}'
    elif 99.95 <= percent < 100:
        text = f'{percent:.2f}' if percent < 99.995 else '>99.99'
    else:
        text = f'{percent:,.1f}'
    return text.replace('-', '−')


def percent(value: float | None) -> str:
    """A rate in [0, 1], or a difference of rates, as percent."""
    return NOT_MEASURED if value is None else f'{share(value)}{_SPACE}%'


def interval(rate: Sequence | None) -> str:
    """The interval of [rate, low, high] in percent, or '' where there is none."""
    return f'[{share(rate[1])},{_SPACE}{share(rate[2])}]' if has_interval(rate) else ''


def with_interval(rate: Sequence | None, unit: str = '%') -> str:
    """[rate, low, high] as 'rate % [low, high]'."""
    if not measured(rate):
        return NOT_MEASURED
    return ' '.join(filter(None, (f'{share(rate[0])}{_SPACE}{unit}', interval(rate))))


def number(value: float | None) -> str:
    """A count, or a mean of counts, with separators between thousands."""
    if value is None:
        return NOT_MEASURED
    return f'{round(value):,}' if float(value).is_integer() or abs(value) >= 1000 else f'{value:,.1f}'


def measured(rate: Sequence | None) -> bool:
    """Whether there is a rate at all in [rate, low, high]."""
    return bool(rate) and rate[0] is not None


def has_interval(rate: Sequence | None) -> bool:
    """Whether [rate, low, high] has both ends of its interval."""
    return measured(rate) and len(rate) == 3 and None not in rate


def plural(count: float, one: str, many: str) -> str:
    """'1 person', '545 people'."""
    return f'{number(count)} {one if count == 1 else many}'


def pairing_name(pairing: str) -> str:
    """Who is looked for where, for a key of `leakage`."""
    kind, _, model = pairing.partition(':')
    return f'Imitation ({model}) → released' if kind == 'imitation' else _PAIRINGS.get(pairing, pairing)
