"""Writes numbers and texts as C literals. Floats are hexadecimal, which is exact."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

ITEMS_PER_LINE = 6


def c_float(value: float | np.floating[Any]) -> str:
    """Returns a float32 as an exact C literal."""
    mantissa, exponent = float(np.float32(value)).hex().split("p")
    whole, _, digits = mantissa.partition(".")
    return f"{whole}.{digits.rstrip('0') or '0'}p{exponent}f"


def c_word(value: int | np.integer[Any]) -> str:
    """Returns 64 bits as a C literal."""
    return f"0x{int(value):016x}"


def c_string(text: str) -> str:
    """Returns a string literal in UTF-8, with octal escapes for all but plain characters."""
    plain = (chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def c_comment(text: str) -> str:
    """Returns text that can stand in a C comment without ending it."""
    return c_string(text).replace("*/", "* /")


def c_array_body(items: Iterable[str]) -> str:
    """Returns the lines between the braces of an array."""
    values = list(items)
    rows = (values[at : at + ITEMS_PER_LINE] for at in range(0, len(values), ITEMS_PER_LINE))
    return "".join(f"    {', '.join(row)},\n" for row in rows)
