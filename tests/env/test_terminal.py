"""Terminal tasks: both layouts read as they are, images built without a registry, graded where the agent never was."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import yaml

from rockroll import rpc
from rockroll.cli.main import run
from rockroll.env.terminal.check import Checked, check
from rockroll.env.terminal.grade import REWARD_TXT
from rockroll.env.terminal.layout import find_tasks, read
from rockroll.env.terminal.tasks import BUNDLED, TerminalTasks, solve
from rockroll.errors import EnvError, ImageMissing, UsageError
from rockroll.sandbox.container.build import build
from rockroll.sandbox.container.podman import Podman
from rockroll.sandbox.node_client import close_node
from rockroll.sandbox.on_demand import OnDemand

MakeTask = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> MakeTask:
    """A task folder of Harbor's layout: made(settings="", test="echo 1 > …", …) -> its path."""

    def make(name: str = "one", settings: str = "", test: str = f"echo 1 > {REWARD_TXT}", dockerfile: str = "") -> Path:
        path = tmp_path / name
        for folder in ("environment", "tests", "solution"):
            (path / folder).mkdir(parents=True)
        (path / "task.toml").write_text(settings)
        (path / "instruction.md").write_text("Do it.\n")
        (path / "environment" / "Dockerfile").write_text(dockerfile or "FROM localhost/rockroll-base:1\nWORKDIR /app\n")
        (path / "tests" / "test.sh").write_text(test)
        (path / "solution" / "solve.sh").write_text("echo done > it")
        return path

    return make


# ---- reading -------------------------------------------------------------------------------------------------------


def test_harbor_s_layout_is_read_with_its_limits(made: MakeTask) -> None:
    settings = """
        schema_version = "1.1"
        [metadata]
        anything = "goes"
        [agent]
        timeout_sec = 12
        [verifier]
        timeout_sec = 3.5
        env = { LEVEL = "2" }
        [environment]
        cpus = 2
        memory_mb = 300
        storage_mb = 100
        workdir = "/srv"
        allow_internet = true
    """
    task = read(made(settings=settings))
    assert (task.agent_seconds, task.test_seconds, task.cwd, task.network) == (12, 3.5, "/srv", True)
    assert task.box == {"cpus": 2, "memory": "300m", "disk": "100m"}
    assert (task.instruction, task.test_env, task.rewards) == ("Do it.", {"LEVEL": "2"}, True)


def test_terminal_bench_s_layout_is_read_too() -> None:
    task = read(BUNDLED / "lost-commit")
    assert (task.agent_seconds, task.test_seconds, task.rewards) == (120, 30, False)
    assert task.instruction.startswith("In the git repository") and task.test == "/tests/run-tests.sh"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('[[steps]]\nname = "a"', "steps asks for several steps"),
        ("[environment]\ngpus = 1", "environment.gpus asks for GPUs"),
        ('[environment]\nos = "windows"', "environment.os is linux here"),
        ('[verifier]\nenvironment_mode = "separate"', "environment_mode is shared here"),
        ('[agent]\nuser = "me"', "agent.user is root here; got 'me'"),
        ("[agent]\ntimeout_sec = -1", "agent.timeout_sec is a number above 0; got -1"),
        ('[verifier]\nenv = { KEY = "${KEY}" }', "which no box sees"),
        ("[agent", "its settings do not parse"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(made: MakeTask, settings: str, says: str) -> None:
    with pytest.raises(EnvError, match=r"^one: ") as refused:
        read(made(settings=settings))
    assert says in str(refused.value)


def test_what_is_missing_is_named(made: MakeTask, tmp_path: Path) -> None:
    (made() / "tests" / "test.sh").unlink()
    with pytest.raises(EnvError, match=r"graded by tests/test.sh, which is missing"):
        read(tmp_path / "one")
    with pytest.raises(UsageError, match="there is no such folder"):
        find_tasks(tmp_path / "nowhere")
    shutil.copytree(BUNDLED / "lost-commit", tmp_path / "two")
    compose = yaml.safe_dump({"services": {"client": {}, "db": {}}})
    (tmp_path / "two" / "docker-compose.yaml").write_text(compose)
    with pytest.raises(EnvError, match="asks for 2 containers"):
        read(tmp_path / "two")


def test_held_out_tasks_are_never_trained_and_each_is_evaluated_once(made: MakeTask, tmp_path: Path) -> None:
    for name in "abcdefgh":
        made(name)
    tasks = TerminalTasks(tmp_path, held_out=0.25)
    tasks._images = {task.name: ("i", "/app") for task in tasks.tasks}  # as prepare leaves it
    held = [tasks.situation(seed, "eval").secret.name for seed in range(2)]
    trained = {tasks.situation(seed, "train").secret.name for seed in range(200)}
    assert len(set(held)) == 2 and len(trained) == 6 and not trained & set(held)
    with pytest.raises(UsageError, match="there is none to train on"):
        TerminalTasks(tmp_path, held_out=1).situation(0, "train")
    with pytest.raises(UsageError, match="box: settings of a sandbox"):
        TerminalTasks(tmp_path, box={"cpu": 2})
    with pytest.raises(UsageError, match="there is no task z; the folder has a, b"):
        TerminalTasks(tmp_path, only=["z"])


# ---- building ------------------------------------------------------------------------------------------------------


async def test_an_image_is_built_once_and_anew_when_its_folder_changes(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("one")
    dockerfile = "FROM ubuntu:24.04 AS first\nCOPY said /said\nFROM first\nWORKDIR /app\n"
    name = await build(podman, tmp_path, dockerfile, stand_in={"ubuntu:24.04": "default"})
    assert (await podman.image_inspect(name))["Config"]["WorkingDir"] == "/app"
    told: list[str] = []
    assert await build(podman, tmp_path, dockerfile, stand_in={"*": "default"}, say=told.append) == name
    assert told == [], "it was there"
    (tmp_path / "said").write_text("two")
    other = await build(podman, tmp_path, dockerfile, stand_in={"*": "default"})
    assert other != name
    for each in (name, other):
        await podman.image_remove(each)


async def test_an_image_that_nobody_has_and_a_build_that_fails_say_so(podman: Podman, tmp_path: Path) -> None:
    with pytest.raises(ImageMissing, match=r"FROM localhost/none:1: it is not in the local store; .*--stand-in"):
        await build(podman, tmp_path, "FROM localhost/none:1\n")
    with pytest.raises(UsageError, match=r"a Dockerfile begins with FROM"):
        await build(podman, tmp_path, "RUN true\n")
    with pytest.raises(Exception, match=r"its Dockerfile could not be built: .*exit status 3"):
        await build(podman, tmp_path, "FROM localhost/rockroll-base:1\nRUN exit 3\n")


async def test_a_box_that_cannot_be_is_the_task_s_error() -> None:
    with pytest.raises(EnvError, match="the box that a task asks for cannot be"):
        async with OnDemand().lease({"memory": "1k"}):
            pass


# ---- grading -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def boxes(node: rpc.Client) -> AsyncIterator[OnDemand]:
    yield OnDemand()


async def test_the_bundled_tasks_pay_their_solution_and_nothing_else(node: rpc.Client) -> None:
    found = [each async for each in check(TerminalTasks())]
    assert sorted((each.task, each.agent, each.reward, each.ok) for each in found) == [
        (name, agent, reward, True)
        for name in ("lost-commit", "mend-median", "top-callers")
        for agent, reward in (("nop", 0.0), ("oracle", 1.0))
    ]


async def test_what_an_agent_plants_for_the_tests_is_not_there_when_they_run(boxes: OnDemand) -> None:
    tasks = TerminalTasks(only=["mend-median"])
    await tasks.prepare()
    situation = tasks.of(tasks.tasks[0])
    async with boxes.lease(situation.box) as box:
        await box.write_file("/tests/test.sh", f"echo 1 > {REWARD_TXT}")
        await box.write_file("/tests/statistics.py", "median = lambda numbers: None")
        await box.write_file(REWARD_TXT, "1")
        assert await tasks.grade(box, situation) == 0.0
        assert not await box.exists("/tests/cases.py"), "the tests never enter the agent's own box"
        code, _ = await solve(tasks.tasks[0], box, situation)
        assert (code, await tasks.grade(box, situation)) == (0, 1.0)


async def test_who_broke_the_tests_decides_whether_it_is_scored(boxes: OnDemand, made: MakeTask) -> None:
    needs = f"grep -q root /etc/passwd && echo 0.5 > {REWARD_TXT}"
    tasks = TerminalTasks(made(test=needs))
    await tasks.prepare()
    situation = tasks.of(tasks.tasks[0])
    async with boxes.lease(situation.box) as box:
        assert await tasks.grade(box, situation) == 0.5
        await box.remove("/etc/passwd")
        assert await tasks.grade(box, situation) == 0.0, "the agent took away what the tests need"
    broken = TerminalTasks(made("two", test="echo no reward"))
    await broken.prepare()
    situation = broken.of(broken.tasks[0])
    async with boxes.lease(situation.box) as box:
        with pytest.raises(EnvError, match=r"two: the tests wrote neither .* in an untouched box too: no reward"):
            await broken.grade(box, situation)


@pytest.mark.slow
async def test_a_task_that_cannot_be_trusted_is_told_with_a_cure(node: rpc.Client, made: MakeTask) -> None:
    found = {each.agent: each async for each in check(TerminalTasks(made()))}
    assert found["oracle"].ok
    nop = found["nop"]
    assert isinstance(nop, Checked) and (nop.ok, nop.reward) == (False, 1.0)
    assert nop.detail == "it earned 1 in place of 0" and "paid for nothing" in nop.cure


def test_the_command_line_lists_and_names_what_is_wrong(
    made: MakeTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made()
    made("two", settings="[environment]\ngpus = 1")
    assert run(["tasks", "ls", str(tmp_path), "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["ok"], second["ok"]) == ("one", True, False)
    assert "GPUs" in second["detail"]
    assert run(["tasks", "check", str(tmp_path / "one"), "--stand-in", "x"]) == 2
    assert "--stand-in is IMAGE=OTHER" in capsys.readouterr().err
    asyncio.run(close_node())
