"""The types of the `openai` package as the judge of the events of the built-in server."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent
from pydantic import BaseModel

# On the wire though in no schema; clients are told to ignore them.
UNDOCUMENTED = {"obfuscation", "phase", "object", "id", "expires_at", "format"}


def _models(union: Any) -> dict[str, type[BaseModel]]:
    members = typing.get_args(typing.get_args(union)[0])
    return {typing.get_args(each.model_fields["type"].annotation)[0]: each for each in members}


SERVER_MODELS = _models(RealtimeServerEvent)
CLIENT_MODELS = _models(RealtimeClientEvent)


def check_server_event(event: dict[str, Any]) -> None:
    """Raises if OpenAI's own client could not read the event, or would not know a field of it."""
    model = SERVER_MODELS[event["type"]].model_validate(event)
    unknown = set(_extras(model)) - UNDOCUMENTED
    assert not unknown, f"{event['type']}: {unknown}"


def check_client_event(event: dict[str, Any]) -> None:
    CLIENT_MODELS[event["type"]].model_validate(event)


def _extras(value: Any) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or {}
        for name in type(value).model_fields:
            yield from _extras(getattr(value, name))
    elif isinstance(value, list):
        for each in value:
            yield from _extras(each)
