"""Blocks that come to a GPU in turn: in what order it copies and computes, told by one that only keeps orders."""

import threading
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from ltx_core.loader.streaming import BlockStreamer

BLOCKS = 5


class Event:
    """How far each stream has come, as far as one of them knows."""

    def __init__(self, gpu, clock):
        self.gpu, self.clock = gpu, clock

    def synchronize(self):
        self.gpu.here.known = self.gpu.known | self.clock


class Stream:
    """Its work is done in order; that of other streams at any time, unless it waits for them."""

    def __init__(self, gpu):
        self.gpu, self.clock = gpu, Counter()

    def queue(self):
        """Add a piece of work; what is done for certain when it ends."""
        self.clock = self.clock | self.gpu.known
        self.clock[id(self)] += 1
        return Counter(self.clock)

    def record_event(self):
        return Event(self.gpu, Counter(self.clock))

    def wait_event(self, event):
        self.clock = self.clock | event.clock


class GPU:
    """The functions of `torch.cuda` that streaming calls."""

    def __init__(self):
        self.here, self.usual = threading.local(), Stream(self)

    @property
    def known(self):
        """What this thread has waited for."""
        return getattr(self.here, "known", Counter())

    def Stream(self, device):
        return Stream(self)

    def current_stream(self, device):
        return getattr(self.here, "stream", self.usual)

    @contextmanager
    def stream(self, stream):
        self.here.stream = stream
        yield
        del self.here.stream


@pytest.fixture
def gpu(monkeypatch):
    gpu = GPU()
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    return gpu


def test_copies_are_awaited_and_run_one_block_ahead(gpu, monkeypatch):
    device, work, held = torch.device("cuda"), {}, []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: held.append((tensor, stream)))

    class Block(nn.Module):
        def __init__(self, index):
            super().__init__()
            self.index, self.weight = index, nn.Parameter(torch.full((), -1.0), requires_grad=False)

        def forward(self, x):
            assert self.weight == self.index
            work["compute", self.index] = gpu.current_stream(device).queue()
            return x

    def load(index):
        work["copy", index] = gpu.current_stream(device).queue()
        return {"weight": torch.full((), float(index))}

    blocks = nn.ModuleList(map(Block, range(BLOCKS)))
    BlockStreamer(blocks, load, device, "blocks.")
    for _ in range(2):
        for block in blocks:
            block(torch.zeros(1))
        for index in range(BLOCKS):
            assert work["copy", index] <= work["compute", index]
        # Two blocks are there at once, and what is freed of one is not written to while it computes.
        for index in range(2, BLOCKS):
            assert work["compute", index - 2] <= work["copy", index]
            assert not work["compute", index - 1] <= work["copy", index]
    assert [(float(tensor), stream) for tensor, stream in held] == [
        (float(index), gpu.usual) for index in range(BLOCKS)
    ] * 2
    assert all(block.weight == -1 for block in blocks)
