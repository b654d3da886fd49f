"""Validates the oracle on ground truth: `python -m ltx_trainer.oracle.validate --clips 500` prints the tables."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ltx_trainer.oracle.degrade import add_hiss, add_noise, blur, resize, through_codecs
from ltx_trainer.oracle.judge import SIZE_LIMIT, Verdict, Wanted, judge  # noqa: F401
from ltx_trainer.world import Clip, Truth, World, WorldConfig
