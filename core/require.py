"""The one way to require a value."""

from __future__ import annotations


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raises ValueError "`name` is `value`; it must be `allowed`." unless the condition holds.

    `allowed` completes the sentence, for instance "0 or more" or "one of norm, spectrum".
    """
    if not condition:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}.")
