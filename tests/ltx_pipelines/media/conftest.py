"""Media tests need no model."""

import pytest


@pytest.fixture(autouse=True)
def _random_model():
    """Instead of the fixture one folder up, which makes a model."""
