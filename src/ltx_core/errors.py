"""What can go wrong, for users: every message says what was wrong, with the value, and what to do."""


class LTXError(ValueError):
    """Base of all errors that a user can mend."""


class ConfigError(LTXError):
    """A checkpoint's configuration lacks a key or holds a value that this model cannot have."""


class MissingKeyError(ConfigError, KeyError):
    """A configuration lacks a key that has no default."""

    __str__ = ValueError.__str__  # KeyError's would quote the sentence


class UnsupportedConfigError(ConfigError, NotImplementedError):
    """A configuration that is well formed but describes a model this package does not implement."""


class CheckpointError(LTXError):
    """A weights file is missing, truncated, foreign, or lacks a tensor."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A file or folder that was asked for does not exist."""


class InputError(LTXError):
    """An argument of a call is out of range or does not fit the others."""


class MediaError(LTXError):
    """An image, audio or video file cannot be read or written."""


class MissingMediaError(MediaError, FileNotFoundError):
    """An image, audio or video file that was asked for does not exist."""


class DtypeError(InputError, TypeError):
    """A tensor does not have the dtype that a network takes."""


class ShapeError(InputError, AssertionError):
    """A tensor or a grid does not have the shape that was declared for it."""


class LayoutError(ShapeError, RuntimeError):
    """A latent cannot be cut into tokens, or tokens do not fill a latent."""
