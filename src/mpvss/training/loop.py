"""The training loop, read from top to bottom; the same for both stages.

Everything random follows from the seed and the number of the step: samples are made from their own numbers, and the
global generators, which the loss draws its points from and the networks their dropout, are seeded at each step. So
there is no generator to keep, and a resumed run makes the same steps as one that was not interrupted.
"""

import contextlib
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mpvss.datasets import open_dataset
from mpvss.datasets.pairs import Batch
from mpvss.errors import ConfigError, ModelError, MpvssError
from mpvss.progress import progress
from mpvss.segmenter import choose_device
from mpvss.training.checkpoints import (
    begin,
    cut_metrics,
    export,
    load_checkpoint,
    save_checkpoint,
    whole_file,
)
from mpvss.training.config import OptimConfig, TrainConfig
from mpvss.training.journal import Journal, draw_sample
from mpvss.training.samples import batches, check_labels, open_samples
from mpvss.training.tasks import make_task
from mpvss.training.validate import validate

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


class TrainingError(MpvssError):
    """Training cannot go on: the loss is no number any more."""


def train(config: TrainConfig, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Run a training, or go on with it.

    Args:
        config: What is trained, on what, and where.
        resume: Go on from the last checkpoint in ``run.out``; from the beginning where there is none yet.
        quiet: No progress bar.

    Returns:
        out (the directory, which ``--model`` takes), steps, seconds, and the last validation.

    Raises:
        ConfigError: The configuration does not fit the model, the data or the run that is resumed.
        DataError: A data set is not as its layout demands.
        ModelError: A model cannot be loaded.
        OutputError: ``run.out`` holds another run, or the disk is full.
        TrainingError: The loss is not finite.
    """
    out, optim = Path(config.run.out), config.optim
    samples, class_names = open_samples(config)
    clips = open_dataset(config.data.validation, config.data.validation_split) if config.data.validation else None

    accelerator = _accelerator(config)
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    if main:
        validated = clips.clips[: config.data.validation_clips] if clips is not None else []
        check_labels([*samples.clips, *validated], out / "labels-checked.json")

    _seed(config.seed, 0, 0)
    task = make_task(config, class_names, accelerator.device)
    optimizer = torch.optim.AdamW(task.groups(), lr=optim.lr)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = task.trained()
    model, optimizer = accelerator.prepare(task, optimizer)
    average = {name: value.detach().clone() for name, value in _floats(trained)} if optim.ema else {}

    start, best = 0, None
    checkpoint = _from_main(accelerator, begin(out, config, resume=resume) if main else None)
    if checkpoint is not None:
        state = load_checkpoint(checkpoint)
        try:
            trained.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            average = {name: value.to(accelerator.device) for name, value in state["average"].items()}
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{checkpoint}: does not fit this run; remove it to go on from the one before") from error
        start, best = state["step"], state["best"]
        log.info("resumed at step %d from %s", start, checkpoint)
    if main:
        cut_metrics(out, start)
    journal = Journal(out, start) if main else None
    images_per_step = optim.batch * optim.accumulate * world
    log.info(
        "%s: %.2f M parameters trained, %d samples an epoch, %d steps of %d",
        out, sum(p.numel() for p in parameters) / 1e6, samples.epoch, optim.steps, images_per_step,
    )  # fmt: skip

    result: dict[str, Any] = {}
    began = logged = time.monotonic()
    spent = dict.fromkeys(("data", "forward", "backward", "update"), 0.0)
    sums: dict[str, float] = {}
    stream = batches(samples, config, start, rank, world)
    model.train()
    hidden = quiet or not main
    with (
        progress("training", optim.steps, unit="steps", done=start, quiet=hidden) as advance,
        contextlib.closing(journal or contextlib.ExitStack()),
    ):
        for step in range(start, optim.steps):
            _seed(config.seed, step + 1, rank)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(step, optim)

            for _ in range(optim.accumulate):
                clock = time.monotonic()
                batch, numbers = next(stream)
                batch = batch.to(accelerator.device)
                spent["data"] += time.monotonic() - clock

                clock = time.monotonic()
                with accelerator.accumulate(model):
                    with accelerator.autocast():
                        terms = model(batch)
                    loss = sum(terms.values(), torch.zeros((), device=accelerator.device))
                    _require_finite(accelerator, loss, out, batch, numbers, step + 1)
                    spent["forward"] += time.monotonic() - clock

                    clock = time.monotonic()
                    accelerator.backward(loss)
                    spent["backward"] += time.monotonic() - clock

                    clock = time.monotonic()
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(parameters, optim.clip_norm)
                        if accelerator.scaler is None:  # which otherwise skips such a step by itself
                            _require_finite(accelerator, norm, out, batch, numbers, step + 1)
                    optimizer.step()
                    optimizer.zero_grad()
                    spent["update"] += time.monotonic() - clock
                for name, value in {"loss": loss, **terms}.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach()) / optim.accumulate
            done = step + 1
            _update_average(average, trained, optim.ema, done)

            advance()
            if done % config.run.log_every == 0 or done == optim.steps:
                steps = done - max(start, done - 1 - (done - 1) % config.run.log_every)
                seconds = time.monotonic() - logged
                means = accelerator.reduce(torch.tensor(list(sums.values()), device=accelerator.device), "mean")
                line: dict[str, Any] = {
                    name: round(value / steps, 6) for name, value in zip(sums, means.tolist(), strict=True)
                }
                line |= {"lr": optimizer.param_groups[0]["lr"], "grad_norm": round(float(norm), 6)}
                line["images_per_second"] = round(steps * images_per_step / seconds, 3)
                line["seconds"] = {name: round(value / steps, 4) for name, value in spent.items()}
                if journal is not None:
                    journal.write(done, line)
                left = (time.monotonic() - began) / (done - start) * (optim.steps - done)
                log.info(
                    "step %d of %d, loss %.4f, %.1f images/s, %d:%02d:%02d left", done, optim.steps, line["loss"],
                    line["images_per_second"], left // 3600, left // 60 % 60, left % 60,
                )  # fmt: skip
                sums, spent, logged = {}, dict.fromkeys(spent, 0.0), time.monotonic()
            if journal is not None and config.run.pictures_every and done % config.run.pictures_every == 0:
                task.eval()
                journal.picture(done, draw_sample(task, batch))
                model.train()
            if clips is not None and (done % config.run.validate_every == 0 or done == optim.steps):
                if journal is not None:
                    with _averaged(trained, average):
                        result = validate(task, clips, config.data)
                        score = result.get("miou", result.get("oracle_miou", 0.0))
                        if best is None or score > best["score"]:
                            best = {"step": done, "score": score}
                            export(out / "best", task)
                    journal.write(done, {"validation": result})
                    log.info("step %d, validation %s", done, result)
                model.train()
                accelerator.wait_for_everyone()
                logged = time.monotonic()
            if main and (done % config.run.save_every == 0 or done == optim.steps):
                state = {
                    "step": done, "model": trained.state_dict(), "average": average, "best": best,
                    "optimizer": optimizer.state_dict(),
                    "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                }  # fmt: skip
                save_checkpoint(out, done, state, config.run.keep)
                with _averaged(trained, average):
                    export(out, task)
    accelerator.wait_for_everyone()
    return {"out": str(out), "steps": optim.steps, "seconds": time.monotonic() - began, "best": best} | result


def rate(step: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a polynomial to zero."""
    warm = min(1.0, (step + 1) / optim.warmup) if optim.warmup else 1.0
    return warm * float((1 - step / optim.steps) ** optim.power)


def _accelerator(config: TrainConfig) -> "Accelerator":
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise MpvssError("training needs accelerate, pyyaml and tensorboard: pip install 'mpvss[train]'") from error

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


def _require_finite(
    accelerator: "Accelerator", value: Tensor, out: Path, batch: Batch, numbers: list[int], step: int
) -> None:
    """Stop all processes before the weights are touched where the value is not finite in one of them."""
    everywhere = accelerator.reduce(value.detach().float(), "mean") if accelerator.num_processes > 1 else value
    if torch.isfinite(everywhere):
        return
    kept = out / f"not-finite-{step:08}-{accelerator.process_index}.pt"
    with whole_file(kept) as file:
        torch.save({name: values.cpu() for name, values in vars(batch).items() if values is not None}, file)
    raise TrainingError(
        f"step {step}: the loss or its gradient is {float(value.detach()):g} on samples {numbers[0]} to {numbers[-1]}, "
        f"kept in {kept}. The checkpoints before are untouched: look at these samples, or start another run with a "
        "lower optim.lr"
    )


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
