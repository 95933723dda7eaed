"""One sentence of an audit's summary."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What the numbers say about one question, and no more.

    Attributes:
        verdict: In two or three words: 'leaks', 'cannot tell from chance', 'below chance', 'reduced', 'no reduction
            shown', 'leaks more', 'to be looked at', 'not measured' or 'note'.
        topic: What it is about, as a heading.
        text: Sentences for people who know no statistics.
    """

    verdict: str
    topic: str
    text: str
