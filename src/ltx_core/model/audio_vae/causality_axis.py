"""Which axis of a spectrogram a convolution must not look ahead on."""

from enum import Enum


class CausalityAxis(Enum):
    NONE = None
    WIDTH = "width"
    HEIGHT = "height"
    WIDTH_COMPATIBILITY = "width-compatibility"
