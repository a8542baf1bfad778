"""Steps run near the data, as a child process or a Job: a file in, JSON lines out (see
``run``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

I = TypeVar("I", bound=BaseModel)
O = TypeVar("O", bound=BaseModel)


@dataclass(frozen=True)
class Step(Generic[I, O]):
    """``run`` takes an ``input`` and returns an ``output``, or raises Trouble; it reports
    progress on the way.
    """

    name: str
    input: type[I]
    output: type[O]
    run: Callable[[I], O]
