"""A stand-in for a language model: it always gives the same replies, word by word, and asks for tools."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass
class ToolCall:
    """The model's request to use this tool and to tell it the outcome."""

    name: str


SCRIPT = [
    ("I look up what the customer has bought, and when.", "look up"),
    ("A teapot, for 49 EUR, nine days ago. That is within the thirty days, so I give the money back.", "refund"),
    ("The refund is on its way. I tell the customer.", "mail"),
    ("Done: the customer has got 49 EUR back, and a mail that says so.", None),
]


def stream(messages: Sequence[str]) -> Iterator[str | ToolCall]:
    """Yield the model's next reply word by word, and then the tool that it asks for, if any.

    `messages` contains the question, the replies so far and the outcomes of the tools.
    """
    text, tool = SCRIPT[len(messages) // 2]
    for word in text.split():
        time.sleep(0.08)
        yield f"{word} "
    if tool is not None:
        yield ToolCall(tool)
