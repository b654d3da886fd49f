"""What can be wrong with a conditioning item."""

from ltx_core.errors import InputError


class ConditioningError(InputError):
    """A conditioning item does not fit the state it is applied to."""


class ConditioningRangeError(ConditioningError, RuntimeError):
    """A conditioning item reaches beyond the end of the video."""
