"""The miniature's oracle: measures a clip's pixels and waveform and judges them against what was wanted."""

from ltx_trainer.oracle.judge import (
    Measured,
    Verdict,
    Wanted,
    compare,
    judge,
    judge_file,
    measure,
    overlap,
    sensible_path,
)

__all__ = [
    "Measured",
    "Verdict",
    "Wanted",
    "compare",
    "judge",
    "judge_file",
    "measure",
    "overlap",
    "sensible_path",
]
