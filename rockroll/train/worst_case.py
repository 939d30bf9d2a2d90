"""The longest batch that a recipe permits, run once before anything is learnt: memory fails at step 0 or never.

In: a trainer that has learnt nothing yet, and the longest sequence. Out: what it took; weights, optimizer, random state
and counters are bit for bit what they were. Leaves when to do it, and what is said of it, to the controller.

The loss is the objective's own, on as many tokens as fit a micro-batch, all of them trained; times 0, so that every
gradient is 0. The update is the optimizer's own, at a learning rate of 0: it makes the optimizer's state, which is
taken away again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rockroll import units
from rockroll.errors import TrainError
from rockroll.train import memory
from rockroll.train.api import TrainBatch, TrainSample, Turn, WorstCase
from rockroll.train.batch import Row, collate
from rockroll.train.extent import widest
from rockroll.train.loss import token_logprobs
from rockroll.train.share import Totals

if TYPE_CHECKING:
    from rockroll.train.trainer import RankTrainer

_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


def run(trainer: RankTrainer, longest: int) -> WorstCase:
    """longest: tokens of a sequence, at most; 0 or more than the model's context: that. Every rank calls.

    Raises TrainError, naming what to lower, where memory does not suffice, and where the trainer has learnt already.
    """
    if trainer.updates:
        raise TrainError(
            f"the worst-case step comes before everything else, so that it leaves nothing behind; "
            f"this trainer has made {trainer.updates} updates"
        )
    longest = min(longest or trainer.context, trainer.context)
    shapes = widest(longest, trainer.config.tokens_per_microbatch, trainer.share.together)
    started = time.perf_counter()
    memory.begin_peak(trainer.device)
    try:
        with memory.bounded(trainer.device, trainer.config.ranks), _as_it_was(trainer):
            _step(trainer, shapes)
    except Exception as error:
        if memory.ran_out(error):
            raise TrainError(_advice(trainer, shapes, error)) from error
        raise
    totals = Totals(trainer.share, (), ["peak"])
    totals.most(peak=torch.tensor(float(memory.peak(trainer.device))))
    rows, length = shapes[0]
    return WorstCase(
        rows=rows,
        length=length,
        peak_bytes=int(totals.reduce()["peak"]),
        seconds=time.perf_counter() - started,
    )


def _step(trainer: RankTrainer, shapes: list[tuple[int, int]]) -> None:
    objective, engine = trainer.objective, trainer.engine
    batch = _batch(trainer, shapes)
    rows = trainer._rows(batch)
    if trainer.config.objective == "policy" and trainer.config.correction in (
        "mask",
        "reject",
    ):  # made-up log-probs would be filtered away
        told = trainer.share.per_token(engine, rows, lambda out, micro: token_logprobs(out, micro.targets)[0])
        for row, logp in zip(rows, told, strict=True):
            row.behaviour = logp
    objective.begin(batch, rows, engine)
    objective.weigh(rows)
    engine.train()
    # The stand-in comes first: it makes the gradients, which lie beside the activations of every later micro-batch.
    packs: list[list[Row]] = [[]]
    for count, _ in shapes:
        packs.append(rows[:count])
        rows = rows[count:]
    for i, mine in enumerate(packs):
        engine.set_gradient_accumulation_boundary(i == len(packs) - 1)
        loss = trainer._loss(collate(mine).to(trainer.device), first=True)
        if not trainer.share.all(bool(torch.isfinite(loss.detach()))):
            raise TrainError(
                f"the loss of the worst-case step is {float(loss.detach())}: the model at {trainer.source} gives no "
                "finite numbers; are its weights whole?"
            )
        engine.backward(loss * 0.0, scale_wrt_gas=False)
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    engine.step()


def _batch(trainer: RankTrainer, shapes: list[tuple[int, int]]) -> TrainBatch:
    """Rows of those shapes: every token but the first is trained, no random number is drawn."""
    uniform = -math.log(trainer.vocabulary)
    samples = []
    for episode, length in enumerate(length for rows, length in shapes for _ in range(rows)):
        samples.append(_sample(episode, length, trainer.vocabulary, uniform))
    if len(samples) == 1:  # a group needs two to compare
        samples.append(_sample(1, 2, trainer.vocabulary, uniform))
    return TrainBatch(step=0, samples=samples)


def _sample(episode: int, length: int, vocabulary: int, logprob: float) -> TrainSample:
    trained = length - 1
    return TrainSample(
        ids=[(7 * episode + i) % vocabulary for i in range(length)],
        mask=[False] + [True] * trained,
        logprobs=[0.0] + [logprob] * trained,
        versions=[-1] + [0] * trained,
        episode=episode,
        group=0,
        reward=float(episode % 2 == 0),
        values=[0.0] * trained,
        turns=[Turn(number=0, start=1, end=length, reward=float(episode % 2 == 0))],
    )


@contextmanager
def _as_it_was(trainer: RankTrainer) -> Iterator[None]:
    """Afterwards nothing of it is left but memory that was used."""
    engine = trainer.engine
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    rates = [group["lr"] for group in engine.optimizer.param_groups]
    counters = {name: getattr(engine, name) for name in _COUNTERS}
    steps = {id(p): _scalars(state) for p, state in optimizer.state.items()}
    state, random_state = trainer.objective.state(), torch.get_rng_state()
    try:
        yield
    finally:
        for name, value in counters.items():
            setattr(engine, name, value)
        for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for p in list(optimizer.state):
            if id(p) in steps:  # its moments are 0 as they were: no update came before, and this one's gradient was 0
                optimizer.state[p].update(steps[id(p)])
            else:
                del optimizer.state[p]
        trainer.objective.restore(state)
        torch.set_rng_state(random_state)


def _scalars(state: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v.clone() if isinstance(v, Tensor) else v
        for k, v in state.items()
        if not isinstance(v, Tensor) or v.dim() == 0
    }


def _advice(trainer: RankTrainer, shapes: list[tuple[int, int]], error: BaseException) -> str:
    config, (rows, length) = trainer.config, max(shapes, key=lambda shape: shape[0] * shape[1])
    cures = []
    if rows > trainer.share.together:
        cures.append(f"lower train tokens_per_microbatch (now {config.tokens_per_microbatch})")
    else:
        cures.append(f"lower engine context_length (now {length}), so that no sequence is that long")
    if not config.gradient_checkpointing:
        cures.append("set train gradient_checkpointing: true")
    free = f"; {units.show_size(memory.available())} are free now" if trainer.device.type == "cpu" else ""
    said = str(error).strip().splitlines()
    return (
        f"the longest batch that this recipe permits, {rows} × {length} tokens, does not fit into the memory of a "
        f"trainer rank ({said[0][:200] if said else type(error).__name__}{free}); {', or '.join(cures)}"
    )
