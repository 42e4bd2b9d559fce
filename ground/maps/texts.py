"""Texts and numbers of a map, which may hold anything: what of them tags, JSON and messages can hold."""

from __future__ import annotations

import math
from typing import Any

TEXT_MAX = 200  # characters that are repeated of a map


def plain(value: Any) -> str:
    """Printable characters in one line, and not many of them."""
    kept = "".join(c if c.isprintable() else " " for c in str(value)[: 4 * TEXT_MAX])
    return " ".join(kept.split())[:TEXT_MAX]


def text_of(value: Any) -> str:
    """The value of an attribute as text, empty where there is none: tables have NaN and types of their own."""
    value = value.item() if hasattr(value, "item") else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)


def number_of(value: Any) -> float | None:
    """A finite number that a value states, with or without the unit m; None where it states none."""
    try:
        found = float(text_of(value).removesuffix("m").strip())
    except ValueError:
        return None
    return found if math.isfinite(found) else None
