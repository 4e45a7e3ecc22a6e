"""Values and lists as LaTeX text: what is absent is a dash, and a minus is as wide as a plus."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

DASH = "--"


def number(value: Any, digits: int = 0) -> str:
    """A number with so many decimals, or a dash for None and nan."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{round(float(value), digits) or 0:,.{digits}f}".replace("-", "$-$")


def signed(value: Any, digits: int = 2) -> str:
    """The same with its sign; what rounds to zero has none."""
    return number(value, digits) if value is None or not round(float(value), digits) > 0 else f"$+${value:.{digits}f}"


def count(value: Any) -> str:
    """A whole number, with commas between thousands."""
    return number(value, 0)


def plain(value: Any) -> str:
    """A setting as short as it can be written: 0.3, 32, $10^{-3}$."""
    if value is None:
        return DASH
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:e}".split("e")
        mantissa = f"{float(mantissa):g}"
        factor = "" if mantissa == "1" else rf"{mantissa} \cdot "
        return rf"${factor}10^{{{int(exponent)}}}$"
    return f"{value:g}"


def escape(text: str) -> str:
    """Plain text to LaTeX, with the few signs that our records and claims use."""
    special = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\^{}"}
    special |= {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "±": r"$\pm$", "×": r"$\times$", "−": "$-$"}
    text = "".join(special.get(letter, letter) for letter in text)
    # A thin space before the sign, and a plus and a minus that are as wide as each other.
    text = text.replace(r" \%", r"\,\%")
    return re.sub(r"(?<![\w.$])([+-])(?=\d)", r"$\1$", text)


def plural(n: float, noun: str) -> str:
    """1 seed, 3 seeds."""
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def join(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
