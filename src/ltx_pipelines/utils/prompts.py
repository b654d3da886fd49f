"""Seed of the language model's answers, and their cleaning."""

from __future__ import annotations

ENHANCEMENT_SEED = 42  # where the generation's own is not used

# Written as escapes: some of these look like what they become.
_PLAIN = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u2032": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u2212": "-",
        "\u00a0": " ",
    }
)


def clean_response(text: str) -> str:
    """Plain quotes, dashes and spaces; nothing before the first letter (list markers, asterisks)."""
    plain = text.translate(_PLAIN)
    start = next((i for i, character in enumerate(plain) if character.isalpha()), 0)
    return plain[start:]
