"""What the train room takes and gives: a batch of sampled tokens in, a weight version out.

In: `TrainBatch`, whose samples are the engine's exact ids, log-probs and versions. Out: `StepReport`, `Exported`.
Leaves which episodes count (rollout drops the invalid ones) and how weights reach an engine to others.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct


class Turn(Struct, frozen=True, kw_only=True):
    """One answer of the model inside a sample, for algorithms that give each turn its own credit."""

    number: int
    """Its place in the episode, the same in every branch that holds it."""
    start: int
    end: int
    """ids[start:end] are its sampled tokens."""
    reward: float = 0.0
    """What the environment gave for it; an outcome reward stands on the last turn."""
    state: str = ""
    """Names the state it began in: equal names, equal states."""


class TrainSample(Struct, frozen=True, kw_only=True):
    """One token sequence of one episode, or of a data set. The four lists have equal length."""

    ids: list[int]
    """Token ids, prompt and sampled, in order."""
    mask: list[bool]
    """True on a token the engine sampled, or a data set's answer: only those are trained, each once."""
    logprobs: list[float] = []
    """The engine's log-prob of each sampled token (after temperature); 0.0 elsewhere. Empty: nobody sampled it."""
    versions: list[int] = []
    """The weight version that sampled each token; -1 elsewhere. Empty: nobody sampled it."""
    episode: int
    """Which episode of the batch; samples of one episode share its reward and advantage."""
    group: int
    """Which group of the batch: episodes of one task and seed, compared with each other."""
    reward: float
    """The episode's reward."""
    domain: str = ""
    """Which of several tasks: rewards of different tasks need not compare."""
    turns: list[Turn] = []
    """For turn_returns and gigpo they cover the mask, gae needs none. A branch repeats those it shares with others."""
    values: list[float] = []
    """For gae alone: the critic's value of each trained token, in order."""


class TrainBatch(Struct, frozen=True, kw_only=True):
    """Everything one training step learns from. Every sample given counts."""

    step: int
    samples: list[TrainSample]
    temperature: float = 1.0
    """The sampling temperature, > 0: the trainer divides its logits by it, so that log-probs compare."""
    spans: int = 0
    """The report is to say so many spans of equal advantages of each sample, at most."""
    learn: bool = True
    """False: the step is done with the weights as they are, under the next version (a critic's head start)."""


class StepReport(Struct, frozen=True, kw_only=True):
    """One step done. `version` is that of the weights after it."""

    version: int
    metrics: dict[str, float]
    """loss/*, advantage/*, logp_diff/*, tokens/trained, tokens/padding_fraction, time/train_s."""
    advantages: list[list[tuple[int, int, float]]] = []
    """By sample: (start, end, advantage of ids[start:end]), as far as the batch asked for them."""


class Exported(Struct, frozen=True, kw_only=True):
    """A Hugging Face folder an engine can load, complete."""

    version: int
    tensors: int
    """How many tensors the weights file holds (tied ones once)."""
    digest: str
    """`rockroll.digest.digest` of those tensors."""


class WorstCase(Struct, frozen=True, kw_only=True):
    """The longest micro-batch that a recipe permits, run through once."""

    rows: int
    length: int
    """Tokens of each row."""
    peak_bytes: int
    """The most that a rank held meanwhile: tensors on a GPU, the whole process on a CPU."""
    seconds: float


class TrainerInfo(Struct, frozen=True, kw_only=True):
    """Who trains: rank 0's view."""

    model: str
    version: int
    parameters: int
    ranks: int
    pids: list[int]
    """One process id per rank, by rank."""
    context: int = 0
    """Tokens that a sequence may have."""


class Trainer(Protocol):
    """One trainable copy of the model. Calls are not concurrent: one at a time, in order."""

    async def worst_case(self, longest: int) -> WorstCase:
        """A step of the longest micro-batch, sequences of `longest` tokens (0: the model's context), that changes
        nothing. Before any other step or load. Raises TrainError that names the setting to lower."""
        ...

    async def step(self, batch: TrainBatch) -> StepReport:
        """Advantages, packing, loss, DeepSpeed step; the version goes up by one.

        Raises TrainError for a batch that has nothing to train or does not fit the model; the weights are untouched.
        """
        ...

    async def values(self, batch: TrainBatch) -> list[list[float]]:
        """Of a critic: the value of each trained token, sample by sample. TrainError where this is none."""
        ...

    async def measure(self, batch: TrainBatch) -> dict[str, float]:
        """The objective's metrics on a batch, loss/NAME among them, without learning from it."""
        ...

    async def export(self, path: str) -> Exported:
        """Write the weights as a Hugging Face folder at `path`, replaced as a whole or not at all."""
        ...

    async def save(self, path: str) -> None:
        """Write a full checkpoint: `model/` in Hugging Face layout, and what continuing bit-equal needs."""
        ...

    async def load(self, path: str) -> int:
        """Continue from a checkpoint; returns its version. Raises TrainError for one that is not whole."""
        ...

    async def logprobs(self, ids: list[int]) -> list[float]:
        """log p(ids[i] | ids[:i]) for i = 1 … len-1, at temperature 1: the canary's other half."""
        ...

    async def info(self) -> TrainerInfo: ...
