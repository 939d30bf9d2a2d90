"""Recipes: what is wrong is said with file, line and cure; what is right comes back as it was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from rockroll.errors import RecipeError
from rockroll.recipe.load import dump, load
from rockroll.recipe.plan import mixture, plan

GOOD = """\
name: try
steps: 3
task: {env: "rockroll:frozen_lake", options: {size: 4}}
rollout:
  groups: 2
  temperature: 0.7
train:
  lr: 1e-3
  betas: [0.9, 0.99]
"""


def test_values_reach_the_rooms_configurations(recipe) -> None:
    config = load(recipe(GOOD))
    assert (config.name, config.steps, config.rollout.groups, config.rollout.temperature) == ("try", 3, 2, 0.7)
    assert config.train.lr == 0.001 and config.train.betas == (0.9, 0.99)
    assert config.task is not None and config.task.options == {"size": 4}
    assert config.agent is None


def test_a_network_is_a_word_or_a_list_of_hosts(recipe) -> None:
    for text, hosts in (
        ('sandbox: {network: [pypi.org, "*.debian.org:8080"]}', ("pypi.org", "*.debian.org:8080")),
        ("sandbox: {network: 'allow:pypi.org,1.1.1.1'}", ("pypi.org", "1.1.1.1")),
        ("sandbox: {network: open}", ()),
    ):
        config = load(recipe(f"{GOOD}{text}\n"))
        assert config.sandbox.allowed == hosts
        assert load(recipe(dump(config))) == config
    assert load(recipe(GOOD), ["sandbox.network=[pypi.org]"]).sandbox.allowed == ("pypi.org",)
    for wrong in ("pypi.org", "[]", '["http://pypi.org"]', "[7]"):
        with pytest.raises(RecipeError, match=r"r.yaml:10: sandbox"):
            load(recipe(f"{GOOD}sandbox: {{network: {wrong}}}\n"))


def test_off_is_the_word_where_a_setting_is_named_so_and_no_for_a_switch(recipe) -> None:
    text = GOOD.replace("size: 4", "size: off").replace("groups: 2", "groups: 2\n  journal: off")
    config = load(recipe(text), ["task.slow=off"])
    assert config.task is not None
    assert (config.rollout.journal, config.task.slow, config.task.options) == ("off", False, {"size": False})
    assert load(recipe(dump(config))) == config
    assert load(recipe(GOOD), ["rollout.journal=off"]).rollout.journal == "off"
    assert load(recipe(GOOD)).rollout.journal == "write"


def test_a_resolved_recipe_reads_back_as_itself(recipe) -> None:
    config = load(recipe(GOOD), ["agent.command=run it", "sandbox.memory=64m"])
    assert load(recipe(dump(config))) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nam: x\nsteps: 1\ntask: {env: a}\n", r"r\.yaml:1: unknown key 'nam' at the top level; did you mean 'name'\?"),
        (GOOD + "  lrr: 1\n", r"r\.yaml:10: unknown key 'lrr' in train; did you mean 'lr'\?"),
        (GOOD.replace("groups: 2", "groups: two"), r"r\.yaml:5: rollout\.groups: .*integer.*'two'"),
        (GOOD.replace("groups: 2", "groups: 0"), r"r\.yaml:4: rollout: rollout groups is at least 1; got 0"),
        ("name: x\ntask: {env: a}\n", r"r\.yaml:1: steps is missing: how many training steps"),
        (GOOD + "name: again\n", r"r\.yaml:10: 'name' stands here twice"),
        ("name: [1\n", r"r\.yaml:\d+: not YAML"),
        ("- 1\n", r"r\.yaml:1: a recipe is a mapping of keys"),
        (GOOD + "engine: {address: 'ipc://x'}\n", r"r\.yaml:10: engine\.address is not for recipes"),
        (
            GOOD.replace("groups: 2", "on_update: restart"),
            r"on_update: restart is for sampling ahead: .* set max_staleness to 1 or more",
        ),
        (GOOD + "engine: {replicas: 0}\n", r"engine replicas must be at least 1; got 0"),
        (GOOD + "engine: {restarts: -1}\n", r"engine restarts must be at least 0; got -1"),
        (
            GOOD + "engine: {kind: vllm, device: cuda, replicas: 3, gpu_share: 0.4}\n",
            r"replicas 3 with gpu_share 0\.4 each are more than the whole of cuda; set gpu_share to at most 0\.33",
        ),
        (GOOD + "engine: {model: x}\n", r"engine\.model is not for recipes: set 'model' at the top level"),
        (
            GOOD + "  objective: sft\n",
            r"objective sft learns from a data set: name it, as in data: \{path: my\.jsonl\}",
        ),
        (
            GOOD + "data: {path: a.jsonl}\n",
            r"data is for train\.objective sft or dpo; policy learns from what it samples",
        ),
        (GOOD + "  objective: distil\n", r"r\.yaml:10: train\.objective: .*'distil'"),
        (GOOD + "  objective: distill\n", r"objective distill needs teacher"),
        (
            "name: x\nsteps: 1\n",
            r"r\.yaml:1: what is to be learnt is one task, as in task: \{env: rockroll:shell\}.* no data set",
        ),
        (
            "name: x\nsteps: 1\ntask: {max_turns: 4}\n",
            r"r\.yaml:3: task\.env is missing: rockroll:NAME, .* module:Class",
        ),
        (GOOD + "sandbox: {memory: 64k}\n", r"memory: 64k is under the 6 MB that a shell needs; try memory: 64m"),
    ],
)
def test_a_wrong_recipe_is_told_where_and_what(recipe, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load(recipe(text))


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yaml: no recipe can be read there \(No such file"):
        load(tmp_path / "nothing.yaml")


def test_settings_overrule_the_file_and_are_named_in_errors(recipe) -> None:
    assert load(recipe(GOOD), ["train.lr=0.5", "rollout.groups=7"]).rollout.groups == 7
    with pytest.raises(RecipeError, match=r"--set train\.lrr=1: unknown key 'lrr' in train; did you mean 'lr'"):
        load(recipe(GOOD), ["train.lrr=1"])
    with pytest.raises(RecipeError, match=r"--set takes KEY=VALUE"):
        load(recipe(GOOD), ["train.lr"])
    with pytest.raises(RecipeError, match=r"--set name\.x=1: name is a value here"):
        load(recipe(GOOD), ["name.x=1"])
    with pytest.raises(RecipeError, match=r"--set steps=many: steps: .*'many'"):
        load(recipe(GOOD), ["steps=many"])


def test_a_data_set_needs_no_task_and_no_engine_unless_a_task_is_to_evaluate_it(recipe) -> None:
    text = "name: x\nsteps: 1\ndata: {path: rockroll:shell_preferences, options: {size: 50}}\ntrain: {objective: dpo}\n"
    config = load(recipe(text))
    assert not config.samples and load(recipe(dump(config))) == config
    assert [line.part for line in plan(config)] == ["controller", "model", "trainer", "data"]
    assert "40 examples" in plan(config)[-1].what and "10 held out" in plan(config)[-1].what
    assert load(recipe(text + "task: {env: rockroll:shell_quiz}\n")).samples


MIXED = """\
name: mixed
steps: 3
tasks:
  - {name: lake, env: "rockroll:frozen_lake", weight: 2, levels: [{size: 3}, {size: 4}]}
  - name: shell
    env: rockroll:shell
    failure_reward: -1
    agent: {command: run it}
    sandbox: {memory: 64m}
rollout: {curriculum: {window: [0.1, 0.9]}}
"""


def test_several_tasks_each_with_what_is_its_own(recipe) -> None:
    config = load(recipe(MIXED), ["tasks.shell.weight=3", "tasks.0.max_turns=5", "tasks.shell.sandbox.pids=32"])
    lake, shell = config.tasks
    assert (lake.weight, lake.max_turns, lake.levels, lake.agent) == (2, 5, ({"size": 3}, {"size": 4}), None)
    assert shell.agent is not None and shell.agent.command == "run it"
    assert shell.sandbox is not None and (shell.sandbox.memory, shell.sandbox.pids) == ("64m", 32)
    assert (shell.weight, shell.failure_reward) == (3, -1)
    assert config.task is None and config.domains == config.tasks
    assert load(recipe(dump(config))) == config
    assert load(recipe(GOOD)).domains == (load(recipe(GOOD)).task,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            MIXED.replace("weight: 2", "wieght: 2"),
            r"r\.yaml:4: unknown key 'wieght' in tasks\.0; did you mean 'weight'",
        ),
        (MIXED.replace("command: run", "comand: run"), r"r\.yaml:8: unknown key 'comand' in tasks\.1\.agent; did you"),
        (MIXED.replace("memory: 64m", "memory: 64k"), r"r\.yaml:9: tasks\.1\.sandbox: memory: 64k is under"),
        (MIXED.replace("memory: 64m", "ttl: 1h"), r"r\.yaml:9: tasks\.1\.sandbox\.ttl is not for recipes"),
        (MIXED.replace("name: shell", "name: lake"), r"r\.yaml:1: tasks have a name each; 'lake' stands there 2 times"),
        (MIXED.replace("  - name: shell\n    env", "  - env"), r"r\.yaml:5: tasks\.1\.name is missing"),
        (MIXED.replace("weight: 2", "weight: 0"), r"r\.yaml:4: tasks\.0: tasks weight is a number above 0; got 0"),
        (MIXED + "task: {env: a}\n", r"one task, as in task: .* or several.*; got both"),
        ("name: x\nsteps: 1\n", r"one task, as in task: .* or several.*; got neither"),
        (GOOD.replace("groups: 2", "curriculum: {boost: 2}"), r"chooses among levels, and there is one alone"),
        (MIXED + "eval: {episodes: 1}\n", r"eval episodes are shared .* each of 2; got 1"),
        (MIXED.replace("0.9]}", "0.9], bost: 2}"), r"unknown key 'bost' in rollout\.curriculum; did you mean 'boost'"),
    ],
)
def test_a_wrong_mixture_is_told_where_and_what(recipe, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load(recipe(text))
    with pytest.raises(RecipeError, match=r"--set tasks\.no\.weight=1: there is no 'no' .*; it has lake, shell"):
        load(recipe(MIXED), ["tasks.no.weight=1"])
    with pytest.raises(RecipeError, match=r"tasks is a list; say which key of which entry"):
        load(recipe(MIXED), ["tasks.lake=1"])


def test_a_plan_shows_the_replicas(recipe) -> None:
    engine = next(line for line in plan(load(recipe(GOOD), ["engine.replicas=3"])) if line.part == "engine")
    assert engine.where == "3 processes (replicas), this machine" and engine.what.endswith("requests at once each")


def test_a_plan_shows_the_mixture(recipe) -> None:
    config = load(recipe(MIXED), ["eval.episodes=9", "rollout.groups=10"])
    lines = {line.part: line.what for line in mixture(config, {"shell": None})}
    assert lines == {
        "task lake": "rockroll:frozen_lake, by rockroll, 2 levels: 66.7%, 6.67 groups a step, 6 held-out tasks",
        "task shell": "rockroll:shell, by an agent program: 33.3%, 3.33 groups a step, 3 held-out tasks",
        "curriculum": "levels with a pass rate from 10% to 90% are drawn 4 times as often as others",
    }
    assert mixture(load(recipe(GOOD)), {}) == []


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_here_is_right(path: Path) -> None:
    assert load(path).name


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("agent={command: python3 a.py}", "without an agent: what a program in a sandbox asks"),
        ("rollout.redundancy.episodes=1", "no redundancy: which episodes end first .* got redundancy episodes 1"),
        ("rollout.on_stale=drop", "on_stale: wait: .*; got drop"),
        ("rollout={on_update: restart, max_staleness: 1, episode_timeout: 0}", "on_update: survive: .*; got restart"),
        ("rollout.episode_timeout=30", r"set rollout episode_timeout: 0 \(no limit\); got 30"),
        ("train={ranks: 2, zero_stage: 1}", "train ranks: 1: .* got 2"),
        ("engine.threads=2", "engine threads: 1: .* got 2"),
        ("engine.deterministic=true", "engine.deterministic is not for recipes: set 'deterministic' at the top level"),
    ],
)
def test_what_depends_on_the_clock_is_refused_where_a_run_is_to_be_repeated(recipe, setting: str, rule: str) -> None:
    path, settings = recipe(GOOD), ["deterministic=true", "rollout.episode_timeout=0"]
    assert load(path, settings).deterministic
    with pytest.raises(RecipeError, match=rule):
        load(path, [*settings, setting])


def test_a_budget_of_the_agents_calls_is_read_and_checked(recipe) -> None:
    text = "name: a\nsteps: 1\ntask: {env: rockroll:shell}\nagent:\n  command: x\n  budget: {calls: 20, seconds: 2.5}\n"
    agent = load(recipe(text)).agent
    assert agent is not None and agent.budget.bounds() == {"calls": 20, "seconds": 2.5}
    with pytest.raises(RecipeError, match=r"6: agent.budget.*agent budget calls is above 0; got 0"):
        load(recipe(text.replace("20", "0")))
    with pytest.raises(RecipeError, match=r"unknown key 'call' in agent\.budget; did you mean 'calls'"):
        load(recipe(text.replace("calls", "call")))


def test_an_adapter_is_a_section_of_train_and_wrong_keys_in_it_are_told(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: a\nsteps: 1\ntask: {env: rockroll:frozen_lake}\ntrain:\n  lora: {rank: 4, targets: [q_proj]}\n"
    )
    config = load(file)
    assert config.train.lora is not None and config.train.lora.targets == ("q_proj",)
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load(again) == config
    with pytest.raises(RecipeError, match=r"unknown key 'rnk' in train.lora; did you mean 'rank'"):
        load(file, ["train.lora={rnk: 4}"])
    with pytest.raises(RecipeError, match="train lora rank must be at least 1"):
        load(file, ["train.lora.rank=0"])


def test_trackers_are_named_checked_and_shown(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(RecipeError, match="track is a list of tensorboard, trackio, wandb, mlflow; got 'wandbb'"):
        load(recipe(GOOD), ["track=[wandbb]"])
    config = load(recipe(GOOD), ["track=[tensorboard, wandb]", "metrics.prometheus=127.0.0.1:9100"])
    assert load(recipe(dump(config))).track == ("tensorboard", "wandb")
    assert {line.part: line.what for line in plan(config)}["metrics"] == "wandb, Prometheus at 127.0.0.1:9100"
