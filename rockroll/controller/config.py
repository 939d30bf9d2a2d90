"""What one run is: the resolved recipe.

In: checked values, from recipe/. Out: a frozen RunConfig, made of the rooms' own configurations. Leaves YAML, lines
and spelling to recipe/.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rockroll.agent.config import AgentConfig
from rockroll.engine.config import EngineConfig
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.domain import DomainConfig, check
from rockroll.sandbox.config import SandboxConfig
from rockroll.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out tasks: how many, how often, how sampled."""

    episodes: int = 256
    """Held-out tasks of one evaluation; 0: none."""
    every: int = 0
    """Also after every so many steps; before the first and after the last it always happens."""
    temperature: float = 0.0
    """0 is greedy."""

    def __post_init__(self) -> None:
        for name in ("episodes", "every", "temperature"):
            if getattr(self, name) < 0:
                raise ValueError(f"eval {name} is at least 0; got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """One fixed prompt, whose log-probs trainer and engine must agree on after every delivery of weights."""

    max_abs_dlogp: float = 0.01
    """The run stops above this difference. float32 on one machine stays below 1e-4, bfloat16 below 0.2."""
    prompt: str = "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs."
    """Any text: it is tokenized by the model's own tokenizer."""

    def __post_init__(self) -> None:
        if self.max_abs_dlogp <= 0:
            raise ValueError(f"canary max_abs_dlogp is above 0; got {self.max_abs_dlogp}")
        if len(self.prompt.strip()) < 2:
            raise ValueError("canary prompt needs at least two characters: a log-prob needs a token before it")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What stays on disk to continue from."""

    every: int = 10
    """Steps between checkpoints; the last step always has one. 0: only the last."""
    keep: int = 2
    """How many stay; older ones are removed. 0: all."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 0:
            raise ValueError(f"checkpoint every and keep are at least 0; got {self.every} and {self.keep}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A recipe, resolved. Section by section it is what the rooms take."""

    name: str
    """Names the run directory and the display."""
    steps: int
    """Training steps in all; 0 only evaluates."""
    task: TaskConfig | None = None
    """What is to be learnt."""
    tasks: tuple[DomainConfig, ...] = ()
    """Or several, each with a name and a weight (docs/training.md, "Several tasks")."""
    seed: int = 0
    """Every random draw of the run comes from this one."""
    model: str = "tiny"
    """A Hugging Face folder, or `tiny`: the model that `scripts/setup` made."""
    agent: AgentConfig | None = None
    """The agent program for tasks that work in a sandbox; tasks with reset and step need none."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    """The boxes of the run."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """How episodes are collected."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """How tokens are sampled."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How weights are updated."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """How progress is measured."""
    canary: CanaryConfig = field(default_factory=CanaryConfig)
    """How a broken delivery of weights is found."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What is kept."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name is a folder's name, without / and no dot first; got {self.name!r}")
        if self.steps < 0:
            raise ValueError(f"steps is at least 0; got {self.steps}")
        if (self.task is None) == (not self.tasks):
            raise ValueError(
                "what is to be learnt is one task, as in task: {env: rockroll:shell}, or several, as in "
                f"tasks: [{{name: a, env: …}}, {{name: b, env: …}}]; got {'both' if self.task else 'neither'}"
            )
        check(self.domains)
        if 0 < self.eval.episodes < len(self.domains):
            raise ValueError(
                f"eval episodes are shared among the tasks, so at least one for each of {len(self.domains)}; got "
                f"{self.eval.episodes}"
            )
        if (curriculum := self.rollout.curriculum) is not None:
            levels = any(task.levels for task in self.domains)
            if not (levels or (curriculum.among == "tasks" and len(self.domains) > 1)):
                raise ValueError(
                    f"rollout curriculum chooses among {curriculum.among}, and there is one alone; give a task levels: "
                    "[{…}, {…}]"
                )

    @property
    def domains(self) -> tuple[TaskConfig, ...]:
        """All tasks, be it one or several."""
        return self.tasks if self.task is None else (self.task,)
