"""One GPU for trainer and engine: who gets how much of it, from the model's shape alone.

In: the model's config.json, how it is trained and served, the GPU's bytes. Out: a `Split`, or UsageError that says what
is missing and which setting gives it back. Pure. Leaves finding the GPU to engine/kinds.py, and what the trainer's
longest batch really takes to train/worst_case.py, which measures it before step 1.

    | trainer: weights, gradients, optimizer | its longest batch | engine: weights | keys and values | both: CUDA |

Keys and values get what `max_batch` requests of whole length take, or what is left: fewer are then decoded together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from rockroll import units
from rockroll.controller.config import RunConfig
from rockroll.controller.model_path import find
from rockroll.engine.config import EngineConfig
from rockroll.errors import UsageError
from rockroll.train.config import TrainConfig
from rockroll.train.critic import critic_config
from rockroll.train.extent import adapter_parameters, logits_bytes, parameters_of, state_bytes, widest

CUDA = 3 << 29
"""1.5 GB each for trainer and engine: CUDA's own, kernels, and what allocators hold and do not use."""
GRAPHS = 1 << 30
"""Of the engine: captured graphs and the buffers of a step."""
SPARE = 0.04
"""Of the GPU, left to nobody: a driver shows some of it as taken, and vLLM starts only where its share is free."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model's config.json decides how large things become."""

    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    kv: int
    """Numbers that a token's keys and values are, over all layers."""
    context: int


def shape_of(model: Path) -> Shape:
    config = json.loads((model / "config.json").read_text())
    text = config.get("text_config", config)
    heads = text["num_attention_heads"]
    head = text.get("head_dim") or text["hidden_size"] // heads
    layers = text["num_hidden_layers"]
    return Shape(
        parameters=parameters_of(model),
        layers=layers,
        hidden=text["hidden_size"],
        vocabulary=text["vocab_size"],
        kv=2 * layers * (text.get("num_key_value_heads") or heads) * head,
        context=text.get("max_position_embeddings", 0),
    )


def batch_bytes(shape: Shape, train: TrainConfig, context: int) -> int:
    """What the longest micro-batch takes beside weights and optimizer.

    34 · hidden bytes a token and layer of 16 bits, twice that of 32; 2 · hidden where a layer is computed again (arXiv
    2205.05198, sections 4.1 and 5, without the attention matrices, which are never there); and the loss of every token.
    """
    rows, length = widest(context, train.tokens_per_microbatch)[0]
    tokens, width = rows * length, (2 if train.dtype == "bfloat16" else 4)
    whole, again = 17 * width * shape.hidden, width * shape.hidden
    layers = shape.layers * again + whole if train.gradient_checkpointing else shape.layers * whole
    return tokens * layers + logits_bytes(tokens, shape.vocabulary, train)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Bytes of one GPU."""

    gpu: int
    trainer: int
    """Weights, gradients, optimizer, a frozen model beside it where there is one, and as much of a critic."""
    batch: int
    engine: int
    """Weights and what is taken whatever is served."""
    memory: int
    """For keys and values."""
    requests: int
    """Of whole length that it holds."""

    @property
    def share(self) -> float:
        """Of the GPU, as vLLM wants it."""
        return round((self.engine + self.memory) / self.gpu, 4)

    def __str__(self) -> str:
        show = units.show_size
        return (
            f"of {show(self.gpu)}: trainer {show(self.trainer)}, its longest batch {show(self.batch)}, engine "
            f"{show(self.engine)}, keys and values {show(self.memory)} ({self.requests} requests of whole length)"
        )


def split(
    gpu: int,
    shape: Shape,
    train: TrainConfig,
    engine: EngineConfig,
    *,
    frozen: int = 0,
    adapter: int = 0,
    critic: TrainConfig | None = None,
    valued: Shape | None = None,
) -> Split:
    """gpu: bytes in all. frozen: parameters of the model that the trainer holds beside its own and does not train.
    adapter: parameters of the one that is trained. critic: a second trainer, which learns while the first one waits.
    valued: the shape of its model, where that is another one.

    UsageError where not even one request of whole length would fit beside the trainer.
    """
    context = min(filter(None, (engine.context_length, shape.context)), default=shape.context)
    width = 2 if engine.dtype != "float32" else 4
    trainer = state_bytes(shape.parameters, train, adapter) + CUDA
    trainer += frozen * (2 if train.dtype == "bfloat16" else 4)
    batch = batch_bytes(shape, train, context)
    if critic is not None:
        valued = valued or shape
        trainer += state_bytes(valued.parameters, critic) + CUDA
        batch = max(batch, batch_bytes(valued, critic, context))
    served = shape.parameters * width + CUDA + GRAPHS
    request = shape.kv * width * context
    left = int((gpu * (1 - SPARE) - trainer - batch) // engine.replicas) - served
    if left < request:
        raise UsageError(
            f"trainer and engine do not fit on one GPU of {units.show_size(gpu)}: the trainer holds "
            f"{units.show_size(trainer)} and its longest batch {units.show_size(batch)}, the engine "
            f"{units.show_size(served)} and {units.show_size(request)} for each request; lower train "
            f"tokens_per_microbatch (now {train.tokens_per_microbatch}) or engine context_length (now {context})"
            + ("" if train.gradient_checkpointing else ", set train gradient_checkpointing: true")
            + ("" if train.lora else ", or train an adapter: train lora: {rank: 16}")
            + "; or say how much the engine gets: engine gpu_share"
        )
    requests = min(engine.max_batch, left // request)
    return Split(gpu=gpu, trainer=trainer, batch=batch, engine=served, memory=requests * request, requests=requests)


def shared(engine: EngineConfig, made: Split) -> EngineConfig:
    """The engine with its part, where its recipe leaves that open."""
    if engine.gpu_share is not None:
        return engine
    memory = str(made.memory) if engine.memory == "auto" else engine.memory
    return replace(engine, gpu_share=made.share, memory=memory)


def computed(config: RunConfig, model: Path, gpu: int, teacher: Path | None = None) -> Split:
    """The split of a recipe. gpu: bytes. teacher: the folder of one that is learnt from. Raises as `split`."""
    train = config.train
    frozen = parameters_of(teacher) if teacher is not None else parameters_of(model) if train.has_reference else 0
    critic = critic_config(train, config.steps) if train.has_critic else None
    adapter = adapter_parameters(model, train)
    other = find(train.critic.model, "train critic model") if train.critic and train.critic.model else None
    valued = shape_of(other.folder) if other is not None and other.folder is not None and not other.todo else None
    shape = shape_of(model)
    return split(gpu, shape, train, config.engine, frozen=frozen, adapter=adapter, critic=critic, valued=valued)
