"""The section `team` of a recipe: read, refused, written back, and what boxes it comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from rockroll.agent.install import image_name
from rockroll.agent.presets import preset
from rockroll.controller.boxes import boxes, installed, pool_sizes
from rockroll.errors import RecipeError, UsageError
from rockroll.recipe.load import dump, load
from rockroll.recipe.plan import plan

RECIPE = """\
name: two
steps: 1
task: {env: "rockroll:handover"}
rollout: {concurrency: 3}
team:
  agents:
    asker: {command: ask}
    solver:
      command: solve
      sandbox: desk
  sandboxes:
    desk: {memory: 1g}
"""


def test_it_comes_back_as_it_was_written(recipe) -> None:
    for path in (recipe(RECIPE), Path("recipes/team.yaml")):
        config = load(path)
        assert config.team is not None and list(config.team.agents) == ["asker", "solver"]
        assert load(recipe(dump(config))) == config
    changed = load(recipe(RECIPE), ["team.agents.solver.timeout=5", "team.on_crash=go_on"])
    assert changed.team and changed.team.agents["solver"].timeout == 5.0 and changed.team.on_crash == "go_on"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("command: solve", "comand: solve", "r.yaml:9: unknown key 'comand' in team.agents.solver; did you mean 'comm"),
        ("memory: 1g", "memry: 1g", "r.yaml:12: unknown key 'memry' in team.sandboxes.desk; did you mean 'memory'?"),
        ("sandbox: desk", "sandbox: shelf", "r.yaml:5: team: agent solver works in one of the sandboxes main, desk"),
        ("team:\n", "agent: {command: x}\nteam:\n", "one agent works, as in agent: .*; got both"),
        ("team:\n", "deterministic: true\nteam:\n", "needs a task with reset and step, without an agent"),
        ("  agents:", "  order: by turns\n  agents:", "r.yaml:6: team.order: Input should be 'together' or 'in_turn'"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(recipe, old: str, new: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load(recipe(RECIPE.replace(old, new)))


def test_each_sandbox_of_an_episode_has_its_own_pool_and_the_plan_says_so(recipe) -> None:
    config = load(recipe(RECIPE))
    sizes = [(tasks, box.memory, size) for box, tasks, size in pool_sizes(config)]
    assert sizes == [(["rockroll:handover"], "512m", 3), (["rockroll:handover/desk"], "1g", 3)]
    alike = load(recipe(RECIPE.replace("{memory: 1g}", "{}")))
    assert len(pool_sizes(alike)) == 2, "also where they are alike: no episode may wait for another's"
    said = [line.what for line in plan(config) if line.part in ("controller", "sandboxes")]
    assert "worked on by asker, solver, together" in said[0] and said[2].endswith("for rockroll:handover/desk")


def test_one_of_several_tasks_has_a_team_of_its_own(recipe) -> None:
    team = RECIPE.partition("team:\n")[2].replace("\n", "\n      ")
    text = "name: x\nsteps: 1\ntasks:\n  - {name: lake, env: 'rockroll:frozen_lake'}\n"
    text += f"  - name: pair\n    env: rockroll:handover\n    team:\n      {team}\n"
    config = load(recipe(text))
    assert [tasks for _, tasks, _ in pool_sizes(config)] == [["pair"], ["pair/desk"]]
    assert config.tasks[1].crew is config.tasks[1].team


def test_agents_by_name_are_in_the_image_of_their_box_or_beside_each_other_in_folders(recipe) -> None:
    codex, mini = preset("codex"), preset("mini-swe-agent")
    one = load(recipe(RECIPE.replace("command: solve", "preset: codex")))
    (main, _, _), (desk, _, _) = pool_sizes(one)
    assert main.image is None and desk.image == image_name(codex)
    assert installed(one) == [(codex, True)]
    both = RECIPE.replace("command: solve", "preset: codex").replace("command: ask", "preset: mini-swe-agent")
    both = both.replace("      sandbox: desk\n", "").partition("  sandboxes")[0] + "sandbox: {memory: 1g}\n"
    (box,) = boxes(load(recipe(both))).values()
    assert box.image is None and [mount.split(":")[1] for mount in box.mounts] == [
        "/opt/agents/mini-swe-agent",
        "/opt/agents/codex",
    ]
    assert {each.name for each, _ in installed(load(recipe(both)))} == {codex.name, mini.name}
    with pytest.raises(UsageError, match=r"codex needs boxes of .* memory at least; got sandbox memory: 64m"):
        boxes(load(recipe(both.replace("1g", "64m").replace("preset: mini-swe-agent", "command: x"))))
