"""Hostile input: from the server, from the control socket's clients, in the configuration.

What holds for all of it: it is understood, or it is one counted fault; memory stays bounded; and
afterwards the device is in service. In CI a few fixed examples of each are tried, in a minute for
all; `VOICED_FUZZ=N pytest tests/fuzz` tries N new ones of each.
"""

from __future__ import annotations

import os
import random
import sys
from collections import deque
from collections.abc import Iterator
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

MORE = int(os.environ.get("VOICED_FUZZ", "0"))

patient = pytest.mark.timeout(0 if MORE else 60)


def examples(in_ci: int) -> settings:
    """As many examples as are affordable, the same ones each time, or as many new ones as are asked
    for."""
    return settings(
        max_examples=MORE or in_ci,
        derandomize=not MORE,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def weight(thing: object) -> int:
    """Bytes of `thing` and of all that it holds, each once."""
    total, seen, left = 0, set[int](), deque([thing])
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, _SHARED):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        left.extend(_held(each))
    return total


_SHARED = (type, ModuleType, FunctionType, MethodType, Enum, random.Random)


def _held(thing: Any) -> Iterator[object]:
    if isinstance(thing, dict):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        yield from thing
    yield getattr(thing, "base", None)  # a view of samples
    yield getattr(thing, "__dict__", None)
    for kind in type(thing).__mro__:
        for name in getattr(kind, "__slots__", ()):
            yield getattr(thing, name, None)
