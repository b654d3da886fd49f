"""Media tests need no model."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache():
    """Instead of the fixture one folder up, which makes a model."""
