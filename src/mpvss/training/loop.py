"""The training loop, read from top to bottom; the same for both stages.

Everything random follows from the seed and the number of the step: samples are made from their own numbers, and the
global generators, which the loss draws its points from and the networks their dropout, are seeded at each step. So
there is no generator to keep, and a resumed run makes the same steps as one that was not interrupted.
"""

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mpvss._devices import choose_device
from mpvss._extras import require
from mpvss.datasets import open_dataset
from mpvss.datasets.pairs import Batch
from mpvss.errors import ConfigError, ModelError, MpvssError
from mpvss.progress import progress
from mpvss.training.checkpoints import begin, cut_metrics, export, load_checkpoint, save_checkpoint, whole_file
from mpvss.training.config import OptimConfig, TrainConfig
from mpvss.training.journal import Journal, draw_sample
from mpvss.training.samples import Samples, batches, check_labels, open_samples
from mpvss.training.tasks import Task, make_task
from mpvss.training.validate import Validation, validate
from mpvss.types import Stop

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


class TrainingError(MpvssError):
    """Training cannot go on: the loss is not finite."""


@dataclass(frozen=True)
class TrainSummary:
    """What a run of training made.

    Attributes:
        out: Directory of the run, which ``--model`` takes.
        steps: Updates of the weights, those of an interrupted run included.
        seconds: Wall time of this call.
        best: Step and score of the best validation; ``None`` without validation.
        validation: The last validation; ``None`` without one.
    """

    out: Path
    steps: int
    seconds: float
    best: dict[str, int | float] | None
    validation: Validation | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; the scores of the validation stand beside the rest."""
        values = {"out": str(self.out), "steps": self.steps, "seconds": self.seconds, "best": self.best}
        return values | (self.validation.to_dict() if self.validation is not None else {})


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    quiet: bool = False,
    stop: Stop | None = None,
    open_samples: Callable[[TrainConfig], tuple[Samples, tuple[str, ...]]] = open_samples,
    make_task: Callable[[TrainConfig, tuple[str, ...], torch.device], Task] = make_task,
) -> TrainSummary:
    """Run a training, or go on with it.

    Args:
        config: What is trained, on what, and where.
        resume: Go on from the last checkpoint in ``run.out``; from the beginning where there is none yet.
        quiet: No progress bar.
        stop: Ends the training after a step, once it is set, with a checkpoint to go on from.
        open_samples: Returns the samples and their classes; a recipe may bring its own.
        make_task: Makes what is trained, with its loss; likewise.

    Raises:
        ConfigError: The configuration does not fit the model, the data or the run that is resumed.
        DataError: A data set does not follow its layout.
        ModelError: A model cannot be loaded.
        OutputError: ``run.out`` holds another run, or the disk is full.
        TrainingError: The loss is not finite.
    """
    run, steps = _Run(config, open_samples(config), make_task), config.optim.steps
    start = run.begin(resume)
    began = time.monotonic()
    with (
        progress("training", steps, unit="steps", done=start, quiet=quiet or not run.is_main) as advance,
        contextlib.closing(run.journal or contextlib.ExitStack()),
    ):
        for done in range(start + 1, steps + 1):
            batch = run.step(done)
            advance()
            if run.is_due(done, config.run.log_every):
                run.log(done)
            if config.run.pictures_every and done % config.run.pictures_every == 0:
                run.draw(done, batch)
            if run.is_due(done, config.run.validate_every):
                run.validate(done)
            stopped = stop is not None and stop.is_set()
            if stopped or run.is_due(done, config.run.save_every):
                run.save(done)
            if stopped:
                steps = done
                break
    run.accelerator.wait_for_everyone()
    return TrainSummary(run.out, steps, time.monotonic() - began, run.best, run.validation)


class _Meter:
    """Sums of what is logged, since the last line of the log.

    Attributes:
        sums: Terms of the loss.
        spent: Seconds of each part of a step.
        steps: Steps counted.
        began: When the clock of images per second was started.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.spent = dict.fromkeys(("data", "forward", "backward", "update"), 0.0)
        self.steps = 0
        self.began = time.monotonic()

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to a part."""
        began = time.monotonic()
        yield
        self.spent[part] += time.monotonic() - began

    def add(self, terms: Mapping[str, Tensor], weight: float) -> None:
        """Add the terms of a loss, weighted."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach()) * weight


class _Run:
    """One training run: the networks, what they are trained with, and how far it is."""

    def __init__(
        self,
        config: TrainConfig,
        samples: tuple[Samples, tuple[str, ...]],
        make_task: Callable[[TrainConfig, tuple[str, ...], torch.device], Task],
    ) -> None:
        data = config.data
        self.config, self.out = config, Path(config.run.out)
        self.samples, class_names = samples
        self.clips = open_dataset(data.validation, data.validation_split) if data.validation else None
        self.accelerator = _accelerator(config)
        self.is_main = self.accelerator.is_main_process
        if self.is_main:
            validated = self.clips.clips[: data.validation_clips] if self.clips is not None else []
            check_labels([*self.samples.clips, *validated], self.out / "labels-checked.json")
        _seed(config.seed, 0, 0)
        self.task = make_task(config, class_names, self.accelerator.device)
        optimizer = torch.optim.AdamW(self.task.groups(), lr=config.optim.lr)
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.trained = self.task.trained()
        self.model, self.optimizer = self.accelerator.prepare(self.task, optimizer)
        averaged = _floats(self.trained) if config.optim.ema else []
        self.average = {name: value.detach().clone() for name, value in averaged}
        self.best: dict[str, int | float] | None = None
        self.validation: Validation | None = None
        self.journal: Journal | None = None
        self.images_per_step = config.optim.batch * config.optim.accumulate * self.accelerator.num_processes

    def begin(self, resume: bool) -> int:
        """Make the run's directory, or go on in it; return the number of steps that are done."""
        accelerator, start = self.accelerator, 0
        checkpoint = _from_main(accelerator, begin(self.out, self.config, resume=resume) if self.is_main else None)
        if checkpoint is not None:
            start = self._restore(checkpoint)
            log.info("resumed at step %d from %s", start, checkpoint)
        if self.is_main:
            cut_metrics(self.out, start)
            self.journal = Journal(self.out, start)
        log.info(
            "%s: %.2f M parameters trained, %d samples an epoch, %d steps of %d",
            self.out, sum(p.numel() for p in self.parameters) / 1e6, self.samples.epoch, self.config.optim.steps,
            self.images_per_step,
        )  # fmt: skip
        self.batches = batches(self.samples, self.config, start, accelerator.process_index, accelerator.num_processes)
        self.model.train()
        self.first, self.began, self.meter = start, time.monotonic(), _Meter()
        return start

    def _restore(self, checkpoint: Path) -> int:
        state = load_checkpoint(checkpoint)
        try:
            self.trained.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.average = {name: value.to(self.accelerator.device) for name, value in state["average"].items()}
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{checkpoint}: does not fit this run; remove it to go on from the one before") from error
        self.best = state["best"]
        return int(state["step"])

    def is_due(self, done: int, every: int) -> bool:
        """Whether something is due that is done every so many steps, and after the last one."""
        return done % every == 0 or done == self.config.optim.steps

    def step(self, done: int) -> Batch:
        """Update the weights once; return the last batch of the step."""
        _seed(self.config.seed, done, self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate(done - 1, self.config.optim)
        for _ in range(self.config.optim.accumulate):
            with self.meter("data"):
                batch, numbers = next(self.batches)
                batch = batch.to(self.accelerator.device)
            self._learn(batch, numbers, done)
        _update_average(self.average, self.trained, self.config.optim.ema, done)
        self.meter.steps += 1
        return batch

    def _learn(self, batch: Batch, numbers: list[int], done: int) -> None:
        accelerator, optim = self.accelerator, self.config.optim
        with accelerator.accumulate(self.model):
            with self.meter("forward"):
                with accelerator.autocast():
                    terms = self.model(batch)
                loss = sum(terms.values(), torch.zeros((), device=accelerator.device))
                self._require_finite(loss, batch, numbers, done)
            with self.meter("backward"):
                accelerator.backward(loss)
            with self.meter("update"):
                if accelerator.sync_gradients:
                    self.norm = accelerator.clip_grad_norm_(self.parameters, optim.clip_norm)
                    if accelerator.scaler is None:  # which otherwise skips such a step by itself
                        self._require_finite(self.norm, batch, numbers, done)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.meter.add({"loss": loss, **terms}, 1 / optim.accumulate)

    def _require_finite(self, value: Tensor, batch: Batch, numbers: list[int], step: int) -> None:
        """Stop all processes before the weights are touched where the value is not finite in one of them."""
        accelerator = self.accelerator
        everywhere = accelerator.reduce(value.detach().float(), "mean") if accelerator.num_processes > 1 else value
        if torch.isfinite(everywhere):
            return
        kept = self.out / f"not-finite-{step:08}-{accelerator.process_index}.pt"
        with whole_file(kept) as file:
            torch.save({name: values.cpu() for name, values in vars(batch).items() if values is not None}, file)
        raise TrainingError(
            f"step {step}: the loss or its gradient is {float(value.detach()):g} on samples {numbers[0]} to "
            f"{numbers[-1]}, kept in {kept}. The checkpoints before are untouched: look at these samples, or start "
            "another run with a lower optim.lr"
        )

    def log(self, done: int) -> None:
        """Write the means since the last line."""
        meter, accelerator, steps = self.meter, self.accelerator, self.config.optim.steps
        seconds = time.monotonic() - meter.began
        sums = accelerator.reduce(torch.tensor(list(meter.sums.values()), device=accelerator.device), "mean")
        means = zip(meter.sums, sums.tolist(), strict=True)
        line: dict[str, Any] = {name: round(value / meter.steps, 6) for name, value in means}
        line |= {"lr": self.optimizer.param_groups[0]["lr"], "grad_norm": round(float(self.norm), 6)}
        line["images_per_second"] = round(meter.steps * self.images_per_step / seconds, 3)
        line["seconds"] = {name: round(value / meter.steps, 4) for name, value in meter.spent.items()}
        if self.journal is not None:
            self.journal.write(done, line)
        left = (time.monotonic() - self.began) / (done - self.first) * (steps - done)
        log.info(
            "step %d of %d, loss %.4f, %.1f images/s, %d:%02d:%02d left", done, steps, line["loss"],
            line["images_per_second"], left // 3600, left // 60 % 60, left % 60,
        )  # fmt: skip
        self.meter = _Meter()

    def draw(self, done: int, batch: Batch) -> None:
        """Keep an image of what the networks make of a batch."""
        if self.journal is not None:
            self.task.eval()
            self.journal.draw(done, draw_sample(self.task, batch))
            self.model.train()

    def validate(self, done: int) -> None:
        """Score the averaged weights, and export them where they are the best so far."""
        if self.clips is None:
            return
        if self.journal is not None:
            with _averaged(self.trained, self.average):
                self.validation = validate(self.task, self.clips, self.config.data)
                if self.best is None or self.validation.score > self.best["score"]:
                    self.best = {"step": done, "score": self.validation.score}
                    export(self.out / "best", self.task)
            self.journal.write(done, {"validation": self.validation.to_dict()})
            log.info("step %d, validation %s", done, self.validation.to_dict())
        self.model.train()
        self.accelerator.wait_for_everyone()
        self.meter.began = time.monotonic()

    def save(self, done: int) -> None:
        """Write a checkpoint, and export the averaged weights."""
        if not self.is_main:
            return
        scaler = self.accelerator.scaler
        state = {
            "step": done, "model": self.trained.state_dict(), "average": self.average, "best": self.best,
            "optimizer": self.optimizer.state_dict(), "scaler": None if scaler is None else scaler.state_dict(),
        }  # fmt: skip
        save_checkpoint(self.out, done, state, self.config.run.keep)
        with _averaged(self.trained, self.average):
            export(self.out, self.task)


def rate(step: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a polynomial to zero."""
    warm = min(1.0, (step + 1) / optim.warmup) if optim.warmup else 1.0
    return warm * float((1 - step / optim.steps) ** optim.power)


def _accelerator(config: TrainConfig) -> "Accelerator":
    require("train", "training needs")
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    device = choose_device(config.run.device)
    if device.type == "cpu" and config.run.precision == "fp16":
        raise ConfigError("run.precision fp16 needs a GPU; use bf16 or no")
    return Accelerator(
        mixed_precision=config.run.precision,
        gradient_accumulation_steps=config.optim.accumulate,
        cpu=device.type == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _from_main(accelerator: "Accelerator", value: Any) -> Any:
    """The main process's value, in every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def _seed(seed: int, step: int, rank: int) -> None:
    """Seed the global generators for one step; processes differ, as their samples do."""
    value = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def _floats(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in module.state_dict().items() if value.is_floating_point()]


@torch.no_grad()
def _update_average(average: dict[str, Tensor], module: nn.Module, keep: float, done: int) -> None:
    if average:
        share = min(keep, (done + 1) / (done + 10))  # the first steps say little
        for name, value in _floats(module):
            average[name].lerp_(value, 1 - share)


@contextlib.contextmanager
def _averaged(module: nn.Module, average: dict[str, Tensor]) -> Iterator[None]:
    """Put the averaged weights in, and the trained ones back afterwards."""
    if not average:
        yield
        return
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(kept | average)
    try:
        yield
    finally:
        module.load_state_dict(kept)
