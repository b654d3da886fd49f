"""Cleaning of what the language model answers."""

from __future__ import annotations

_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "—": "-", "–": "-", " ": " ", "′": "'", "−": "-"}
)


def clean_response(text: str) -> str:
    """Plain quotes, dashes and spaces; nothing before the first letter (list markers, asterisks)."""
    plain = text.translate(_PLAIN)
    start = next((i for i, character in enumerate(plain) if character.isalpha()), 0)
    return plain[start:]
