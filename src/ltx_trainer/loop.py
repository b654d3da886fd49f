"""The training loop: one for every task, on Accelerate, and the same whether it was interrupted or not."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltx_core.errors import CheckpointError, ConfigError, InputError, LTXError
from ltx_pipelines.progress import progress
from ltx_trainer.average import WeightAverage
from ltx_trainer.checkpoints import Checkpoints
from ltx_trainer.config import Decay, Precision, RunConfig
from ltx_trainer.data import batches
from ltx_trainer.folder import is_first_process, own_folder
from ltx_trainer.log import Log
from ltx_trainer.optimizer import make_optimizer
from ltx_trainer.sharding import gather, launcher_shards, load_shares, save_shares, shard
from ltx_trainer.task import Batch, Task

logger = logging.getLogger(__name__)

FINAL_RATE = 0.01  # of the peak, at the end of a cosine decay
BAD_STEPS = 10  # steps without finite gradients after which a run is given up


def train(task: Task, folder: Path) -> Path | None:
    """Train `task` in `folder` and return the official-format file, or None if a signal stopped it.

    The folder gets ``log.jsonl``, ``checkpoints/`` and at the end ``<task>.safetensors``. If it holds
    checkpoints already, the run goes on from the last one, and ends as if it had never stopped: batches, noise
    and learning rates follow from seed and step alone; PyTorch's global random state is set from them at every
    step. SIGTERM and SIGINT save a checkpoint first.
    Raises `LTXError` for what the user can mend, a full disk and a diverging loss included.
    """
    owned = own_folder(folder) if is_first_process() else nullcontext()
    with owned, torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
        return _Training(task, folder).run()


def learning_rate(config: RunConfig, step: int) -> float:
    """The rate of the run's step `step` (from 0): in each stage a linear warm-up, then constant or half a cosine."""
    number, within = config.stage_of(step)
    stage, optimizer = config.stages[number], config.optimizer
    peak = stage.learning_rate or optimizer.learning_rate
    if within < optimizer.warmup_steps:
        return peak * (within + 1) / optimizer.warmup_steps
    if optimizer.decay is Decay.CONSTANT:
        return peak
    done = (within - optimizer.warmup_steps) / max(1, stage.steps - optimizer.warmup_steps)
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


class _Training:
    """One run in one process."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.config = config = task.config
        self.accelerator = _accelerator(config)
        settings = config.optimizer
        if not any(p.requires_grad for p in task.model.parameters()):
            raise ConfigError("Nothing is left to train: every part of the model is frozen.")
        self.frozen = {name for name, p in task.model.named_parameters() if not p.requires_grad}
        self.sharded = bool(task.blocks) and self.accelerator.num_processes > 1
        self.model: Any = task.model
        if self.sharded:
            shard(self.model, task.blocks, self.accelerator)
        self.optimizer: Any = make_optimizer(self.model, settings)
        if not self.sharded:
            self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.average = WeightAverage(task.model, settings.average) if settings.average else None
        if self.average:
            self.accelerator.register_for_checkpointing(self.average)
        self.accelerator.register_save_state_pre_hook(self._leave_out_frozen)
        self.checkpoints = Checkpoints(folder / "checkpoints", config.saving.keep)
        self.log = Log(folder / "log.jsonl")
        self.step, self.bad_steps, self.began = 0, 0, time.monotonic()
        self.losses: Mapping[str, Tensor | float] = {}  # of the last step

    @property
    def identity(self) -> dict[str, Any]:
        """What another run must share to go on from this one's checkpoints."""
        return {
            "task": self.task.name,
            "network": self.task.network,
            "seed": self.config.seed,
            "stages": [
                {k: v for k, v in dataclasses.asdict(stage).items() if k != "learning_rate"}
                for stage in self.config.stages[:-1]  # the last one may be prolonged
            ],
            "start": self.config.start,
            "method": self.config.optimizer.method.value,
            "average": bool(self.average),
            "processes": self.accelerator.num_processes,
            **({"shard": True} if self.sharded else {}),
            **self.task.identity,
        }

    def run(self) -> Path | None:
        self._resume()
        accelerator, config = self.accelerator, self.config
        source = batches(
            self.task, self.step, accelerator.process_index, accelerator.num_processes, accelerator.device
        )
        shown = accelerator.is_main_process
        bar = progress(total=config.steps, initial=self.step, desc=self.task.name, shown=shown)
        with _stoppable() as stopped, bar:
            if self.log.last_step() < self.step:  # it may have died between a checkpoint and its line
                self._report(bar)
            while self.step < config.steps:
                self.losses = self._step(source)
                self.step += 1
                bar.update()
                ends, stop = self.step == config.steps, self._any(stopped)
                if ends or stop or self.step % config.saving.every == 0:
                    self._save()  # before an evaluation, which may fail
                self._report(bar)
                if stop and not ends:
                    logger.info("Stopped at step %d; the same command goes on from there.", self.step)
                    return None
        if self.bad_steps:
            logger.warning(
                "The gradients of the last %d steps were not finite: these learnt nothing.", self.bad_steps
            )
        return self._export()

    def _step(self, source: Iterator[Batch]) -> dict[str, Tensor]:
        """One update of the weights; returns the losses of its last batch."""
        config, accelerator = self.config, self.accelerator
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        values: dict[str, Tensor] = {}
        for part in range(config.optimizer.accumulate):
            noise = self._noise(part)
            last = part == config.optimizer.accumulate - 1
            waits = not (last or self.sharded)  # sharded, there is no room for whole gradients that wait
            with accelerator.no_sync(self.model) if waits else nullcontext(), _attention(accelerator.device):
                values = self.task.losses(self.model, next(source), noise)
                accelerator.backward(values["loss"] / config.optimizer.accumulate)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.optimizer.max_norm)
        norm = norm.full_tensor() if self.sharded else norm
        if self._finite(norm):
            self.optimizer.step()
            if self.average:
                self.average.update()
        self.optimizer.zero_grad()
        return {key: value.detach() for key, value in values.items()}

    def _finite(self, norm: Tensor | float) -> bool:
        """Whether the step can be taken; a few that cannot are passed over, many in a row end the run."""
        if math.isfinite(float(norm)):
            self.bad_steps = 0
            return True
        self.bad_steps += 1
        if self.bad_steps >= BAD_STEPS:
            raise LTXError(
                f"{self.task.name}: the gradients of {BAD_STEPS} steps up to step {self.step} were not finite. "
                f"Lower optimizer.learning_rate; the last good checkpoint is {self.checkpoints.latest()}."
            )
        return False

    def _noise(self, part: int) -> torch.Generator:
        """The source of this batch's randomness: a function of seed, step, part and process."""
        seeds = torch.tensor([self.config.seed, self.step, part, self.accelerator.process_index])
        mixed = int((seeds * torch.tensor([1_000_003, 7_919, 104_729, 611_953])).sum())
        torch.manual_seed(mixed)  # for modules that draw by themselves, such as dropout
        return torch.Generator(self.accelerator.device).manual_seed(mixed)

    def _report(self, bar: Any) -> None:
        """Log the step if its turn has come, with scores if theirs has."""
        saving = self.config.saving
        ends = self.step == self.config.steps
        evaluates = ends or self.step % saving.evaluate_every == 0
        if not (evaluates or self.step % saving.log_every == 0):
            return
        number, _ = self.config.stage_of(self.step - 1)
        main = self.accelerator.is_main_process
        scores = self._evaluate(number) if evaluates and (main or self.sharded) else {}
        if not main:
            return
        line: dict[str, Any] = {"step": self.step, "stage": number}
        line |= {key: round(float(value), 6) for key, value in self.losses.items()}
        line["learning_rate"] = learning_rate(self.config, self.step - 1)
        line |= {key: round(value, 4) for key, value in scores.items()}
        line["seconds"] = round(time.monotonic() - self.began, 2)
        self.log.write(**line)
        bar.set_postfix({key: line[key] for key in line if key not in ("step", "stage", "seconds")})

    def _evaluate(self, stage: int) -> dict[str, float]:
        """The scores; if weights are sharded, all processes have to take part."""
        self.task.model.eval()
        with self._averaged(), torch.no_grad():
            return self.task.evaluate(stage, self.accelerator.device)

    def _averaged(self) -> Any:
        return self.average.applied() if self.average else nullcontext()

    def _any(self, stopped: list[int]) -> bool:
        """Whether any process was told to stop, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return bool(stopped)
        told = torch.tensor(len(stopped), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum"))

    def _save(self) -> None:
        if self.accelerator.num_processes > 1:
            self._save_together()
        else:
            self._keep(self._write)

    def _keep(self, write: Callable[[Path], None]) -> None:
        losses = {key: float(value) for key, value in self.losses.items()}
        self.checkpoints.save(self.step, self.identity, write, losses)

    def _leave_out_frozen(self, models: list, weights: list[dict[str, Tensor]], folder: str) -> None:
        """What is not trained comes from the file that the run started from."""
        for state in weights:
            for name in [name for name in state if name.removeprefix("module.") in self.frozen]:
                del state[name]

    def _write(self, path: Path) -> None:
        if self.sharded:
            save_shares(self.model, self.optimizer, path)
        else:
            self.accelerator.save_state(str(path))

    def _save_together(self) -> None:
        """All processes write their shards into one folder, which the main one then names."""
        shared = self.checkpoints.folder / f".shared-{self.step:08d}"
        self._write(shared)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._keep(lambda path: _move_into(shared, path))
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        last = self.checkpoints.latest()
        if last is None:
            if self.accelerator.is_main_process:
                self.log.rewind(-1)
            return
        self.step, self.losses = self.checkpoints.read(last, self.identity)
        if self.step > self.config.steps:
            raise ConfigError(
                f"{last} is beyond this run's {self.config.steps} steps; add steps to the last of [[stages]] or "
                "give another --output-path."
            )
        try:
            if self.sharded:
                load_shares(self.model, self.optimizer, last)
            else:
                self.accelerator.load_state(str(last), strict=not self.frozen)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(
                f"{last} cannot be read ({reason}); remove this folder, and the run goes on from the one before."
            ) from error
        if self.accelerator.is_main_process:
            self.log.rewind(self.step)
        logger.info("Going on from step %d of %d (%s).", self.step, self.config.steps, last)

    def _export(self) -> Path | None:
        path = self.folder / f"{self.task.name}.safetensors"
        self.accelerator.wait_for_everyone()
        if self.sharded:
            gather(self.task.model, here=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            self.task.model.eval()
            with self._averaged(), torch.no_grad():
                self.task.export(path, self.accelerator.device)
        self.accelerator.wait_for_everyone()
        return path


def _move_into(source: Path, target: Path) -> None:
    for path in source.iterdir():
        path.rename(target / path.name)
    source.rmdir()


def _attention(device: torch.device) -> Any:
    """On a CPU PyTorch's fused attention takes twice as long backwards as the plain formula on short sequences."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _accelerator(config: RunConfig) -> Any:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState
    except ImportError:
        raise InputError("Training needs Hugging Face Accelerate: pip install 'openltx[train]'.") from None
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of every file it saves
    launcher_shards(possible=False)  # the command line would have made a setting of it
    precision = "bf16" if config.precision is Precision.BF16 else "no"
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # what a batch is given decides
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cpu = several and not torch.cuda.is_available()  # Accelerate has to be told
    return Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=[unused])


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT are added to instead of ending the process; a second one ends it."""
    told: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        told.append(number)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: signals stay as they are
        pass
    try:
        yield told
    finally:
        for told_by, handler in before.items():
            signal.signal(told_by, handler)
