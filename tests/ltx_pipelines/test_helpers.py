"""The official helper functions where no recording covers them."""

import pytest

from ltx_pipelines.utils.prompts import clean_response


@pytest.mark.parametrize(
    ("fancy", "plain"),
    [
        ("\u2018a\u2019 b\u2032", "a' b'"),
        ("x \u201cy\u201d", 'x "y"'),
        ("a\u2013b\u2014c\u22121", "a-b-c-1"),
        ("A\u00a0red\u00a0ball", "A red ball"),
        ("1.\u00a0**Style:** x", "Style:** x"),
        ("\u00e9t\u00e9 2", "\u00e9t\u00e9 2"),
        ("123", "123"),
    ],
)
def test_answers_become_plain_text(fancy, plain):
    assert clean_response(fancy) == plain
