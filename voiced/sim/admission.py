"""Who is let into the built-in server, judged as OpenAI does: only after the upgrade (101)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

PATH = "/v1/realtime"


@dataclass(frozen=True)
class Refusal:
    """The error event a refused client is sent, and the close that follows it."""

    close_code: int
    code: str
    message: str
    kind: str = "invalid_request_error"

    @property
    def close_reason(self) -> str:
        return f"{self.kind}.{self.code}"


NO_QUOTA = Refusal(
    1013,
    "insufficient_quota",
    "You exceeded your current quota, please check your plan and billing details.",
    "insufficient_quota",
)


def is_served(request_path: str) -> bool:
    """Whether this server has anything at the path (else: HTTP 404)."""
    return urlsplit(request_path).path == PATH


def model_of(request_path: str) -> str | None:
    """The model named in the query, None without one."""
    names = parse_qs(urlsplit(request_path).query).get("model")
    return names[0] if names else None


def refusal(
    request_path: str,
    headers: Mapping[str, str],
    *,
    keys: Collection[str] | None,
    has_quota: bool,
) -> Refusal | None:
    """Why this client may not come in, None if it may. `keys` None accepts any key or none."""
    if "OpenAI-Beta" in headers:
        return Refusal(
            4000, "beta_api_shape_disabled", "The beta interface of the Realtime API is gone."
        )
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    if keys is not None and key not in keys:
        return Refusal(3000, "invalid_api_key", "Incorrect API key provided.")
    model = model_of(request_path)
    if model is None:
        return Refusal(4000, "missing_model", "You must provide a model parameter.")
    if not model.startswith("gpt-realtime"):
        return Refusal(
            4004, "model_not_found", f"The model `{model}` does not exist or is not yours to use."
        )
    return None if has_quota else NO_QUOTA
