"""Any JSON value, of words and names that mean something to ocloop now and then."""

from __future__ import annotations

import random
from typing import Any

# fmt: off
WORDS = (
    "", "ses_1", "ses_2", "msg_1", "idle", "busy", "retry", "assistant", "user", "running",
    "completed", "error", "text", "tool", "reasoning", "unknown", "stop", "tool-calls", "bash",
    "todowrite", "in_progress", "\ud800", "\x1b[2J", "UnknownError", "APIError",
    "ProviderModelNotFoundError: x\n   at y", "Thu, 32 Jan 1970 99:00:00", "9" * 30,
)
NUMBERS = (
    None, True, False, 0, 1, -1, 429, 1e300, -1e300, float("nan"), float("inf"), 10**30, -(10**400),
    2_000_000_000_000, 1e17, -1e17,
)
NAMES = (
    "additions", "agent", "attempt", "cache", "command", "completed", "content", "context",
    "cost", "data", "deletions", "delta", "description", "end", "error", "file", "filePath",
    "filediff", "finish", "id", "info", "input", "isRetryable", "label", "limit", "line",
    "message", "messageID", "metadata", "model", "modelID", "models", "name", "next",
    "options", "output", "parentID", "part", "partID", "parts", "path", "patterns",
    "permission", "properties", "providerID", "providers", "question", "questions", "read",
    "reasoning", "reply", "requestID", "responseHeaders", "retry-after", "role", "ses_1",
    "sessionID", "start", "state", "status", "statusCode", "summary", "synthetic", "text",
    "time", "title", "tokens", "tool", "type", "write",
)
# fmt: on


def names_in(value: Any) -> set[str]:
    """All names of the objects in it."""
    if isinstance(value, dict):
        return {*value, *names_in(list(value.values()))}
    if isinstance(value, (list, tuple)):
        return {name for one in value for name in names_in(one)}
    return set()


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value, of names that mean something now and then."""
    kind = rng.randrange(10 if depth < 3 else 6)
    if kind < 2:
        return rng.choice(WORDS)
    if kind < 6:
        return rng.choice(NUMBERS)
    if kind == 6:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(NAMES): anything(rng, depth + 1) for _ in range(rng.randrange(6))}


def is_sound(value: Any) -> bool:
    """Whether a value of the vocabulary has no JSON in it, and no number that is none."""
    if isinstance(value, (str, bool, int)) or value is None:
        return True
    if isinstance(value, float):
        return value == value and abs(value) < 1e30
    return isinstance(value, tuple) and all(map(is_sound, value))
