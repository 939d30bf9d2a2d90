"""A terminal task as others wrote it: a folder in Harbor's layout, or in that of the older Terminal-Bench.

In: a folder. Out: a TerminalTask that says what is asked, what the box is, how it is graded and solved. Leaves images
to sandbox/container/build.py, grading to grade.py, and which task is drawn to tasks.py.

    Harbor                                  Terminal-Bench
    task.toml                               task.yaml
    instruction.md                          `instruction` in task.yaml
    environment/Dockerfile                  Dockerfile
    tests/test.sh, writes a reward          run-tests.sh, its exit code; tests/
    solution/solve.sh                       solution.sh

What a folder asks for and rockroll has not (several containers, steps, GPUs, …) is an EnvError with a sentence: a task
that is read only in part would be graded wrongly.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rockroll.errors import EnvError, UsageError

AGENT_SECONDS = {"task.toml": 600.0, "task.yaml": 360.0}
TEST_SECONDS = {"task.toml": 600.0, "task.yaml": 60.0}
"""Where the folder names no limit of its own: Terminal-Bench's defaults, and Harbor's of its verifier for both."""
BUILD_SECONDS = 600.0
MEMORY = "2g"
"""Of a box whose task names none: compilers and package managers are killed in less."""


@dataclass(frozen=True, kw_only=True)
class TerminalTask:
    """One task folder, read."""

    name: str
    """The folder's."""
    path: Path
    instruction: str
    context: Path | None
    """The folder that its Dockerfile builds; None: `image` as it is."""
    image: str | None = None
    """A ready image that the folder names."""
    tests: tuple[tuple[Path, str], ...]
    """What is put into the box for grading: (file or folder here, its path there)."""
    test: str
    """The path of the test script in the box."""
    rewards: bool
    """The script writes a reward (Harbor); False: its exit code is the verdict."""
    solution: tuple[Path, str] | None = None
    """As `tests`, for the reference solution."""
    solve: str = ""
    """The path of its script in the box."""
    agent_seconds: float
    test_seconds: float
    build_seconds: float = BUILD_SECONDS
    box: Mapping[str, Any] = field(default_factory=dict)
    """What its sandbox is: cpus, memory, disk."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Of everything that runs in the box."""
    test_env: Mapping[str, str] = field(default_factory=dict)
    solve_env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    """Where the agent starts; None: the image's folder."""
    network: bool = False
    """It was written for a box with a network."""

    @property
    def dockerfile(self) -> str:
        assert self.context is not None
        return (self.context / "Dockerfile").read_text()


def is_task(path: Path) -> bool:
    """Whether that folder is a task."""
    return (path / "task.toml").is_file() or (path / "task.yaml").is_file()


def find_tasks(path: Path) -> list[Path]:
    """The folder itself if it is a task, else the tasks in it, by name. Raises UsageError where there is none."""
    if is_task(path):
        return [path]
    found = sorted(each for each in path.iterdir() if is_task(each)) if path.is_dir() else []
    if not found:
        raise UsageError(
            f"{path}: a folder of terminal tasks holds folders with a task.toml (Harbor) or a task.yaml "
            f"(Terminal-Bench); {'this one holds none' if path.is_dir() else 'there is no such folder'}"
        )
    return found


def read(path: Path) -> TerminalTask:
    """The task in that folder. Raises EnvError with the rule that it breaks."""
    path = path.resolve()
    try:
        return _harbor(path) if (path / "task.toml").is_file() else _terminal_bench(path)
    except OSError as error:
        raise EnvError(f"{path.name}: {error.filename} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise EnvError(f"{path.name}: its settings do not parse: {error}") from None


def _harbor(path: Path) -> TerminalTask:
    said = _Said(path.name, tomllib.loads((path / "task.toml").read_text()))
    for key, what in (
        ("steps", "several steps"),
        ("environment.gpus", "GPUs"),
        ("environment.tpu", "a TPU"),
        ("environment.mcp_servers", "MCP servers"),
        ("environment.healthcheck", "a health check"),
        ("verifier.environment", "a box of its own for the tests"),
        ("verifier.collect", "commands that collect files"),
    ):
        if said.at(key):
            raise EnvError(
                f"{path.name}: {key} asks for {what}, which rockroll's terminal tasks have not; leave it out"
            )
    if str(said.at("environment.os") or "linux").lower() != "linux":
        raise EnvError(f"{path.name}: environment.os is linux here; got {said.at('environment.os')}")
    if said.at("verifier.environment_mode") not in (None, "shared"):
        raise EnvError(f"{path.name}: verifier.environment_mode is shared here: tests run in a copy of the agent's box")
    for who in ("agent", "verifier"):
        if said.at(f"{who}.user") not in (None, "root", 0, "0"):
            raise EnvError(f"{path.name}: {who}.user is root here; got {said.at(f'{who}.user')!r}")
    environment = path / "environment"
    _one_container(path.name, environment)
    context = environment if (environment / "Dockerfile").is_file() else None
    image = said.text("environment.docker_image")
    if context is None and not image:
        raise EnvError(f"{path.name}: its box is environment/Dockerfile, or environment.docker_image; it has neither")
    test, solve = path / "tests" / "test.sh", path / "solution" / "solve.sh"
    if not test.is_file():
        raise EnvError(f"{path.name}: it is graded by tests/test.sh, which is missing")
    return TerminalTask(
        name=path.name,
        path=path,
        instruction=_instruction(path.name, (path / "instruction.md").read_text()),
        context=context,
        image=image,
        tests=((test.parent, "/tests"),),
        test="/tests/test.sh",
        rewards=True,
        solution=(solve.parent, "/solution") if solve.is_file() else None,
        solve="/solution/solve.sh",
        agent_seconds=said.seconds("agent.timeout_sec", AGENT_SECONDS["task.toml"]),
        test_seconds=said.seconds("verifier.timeout_sec", TEST_SECONDS["task.toml"]),
        build_seconds=said.seconds("environment.build_timeout_sec", BUILD_SECONDS),
        box=_box(said),
        env=said.variables("environment.env"),
        test_env=said.variables("verifier.env"),
        solve_env=said.variables("solution.env"),
        cwd=said.text("environment.workdir"),
        network=said.at("environment.allow_internet") is True or said.at("environment.network_mode") == "public",
    )


def _terminal_bench(path: Path) -> TerminalTask:
    said = _Said(path.name, yaml.safe_load((path / "task.yaml").read_text()))
    _one_container(path.name, path)
    if not (path / "Dockerfile").is_file():
        raise EnvError(f"{path.name}: its box is a Dockerfile, which is missing")
    if not (path / "run-tests.sh").is_file():
        raise EnvError(f"{path.name}: it is graded by run-tests.sh, which is missing")
    solve, tests = path / "solution.sh", path / "tests"
    return TerminalTask(
        name=path.name,
        path=path,
        instruction=_instruction(path.name, said.text("instruction") or ""),
        context=path,
        tests=(*([(tests, "/tests")] if tests.is_dir() else []), (path / "run-tests.sh", "/tests/run-tests.sh")),
        test="/tests/run-tests.sh",
        rewards=False,
        solution=(solve, "/solution/solve.sh") if solve.is_file() else None,
        solve="/solution/solve.sh",
        agent_seconds=said.seconds("max_agent_timeout_sec", AGENT_SECONDS["task.yaml"]),
        test_seconds=said.seconds("max_test_timeout_sec", TEST_SECONDS["task.yaml"]),
        box={"memory": MEMORY},
        test_env={"TEST_DIR": "/tests"},
        network=True,
    )


def _one_container(name: str, folder: Path) -> None:
    """Terminal-Bench's usual compose file names the one container that the Dockerfile makes: it says nothing more."""
    for compose in ("docker-compose.yaml", "docker-compose.yml"):
        if not (folder / compose).is_file():
            continue
        services = (yaml.safe_load((folder / compose).read_text()) or {}).get("services") or {}
        if len(services) != 1 or not (folder / "Dockerfile").is_file():
            raise EnvError(
                f"{name}: {compose} asks for {len(services)} containers; a task is one box here, made by a Dockerfile"
            )


def _instruction(name: str, text: str) -> str:
    if not text.strip():
        raise EnvError(f"{name}: the instruction is empty")
    return text.strip()


def _box(said: _Said) -> dict[str, Any]:
    box: dict[str, Any] = {"memory": MEMORY}
    if (cpus := said.number("environment.cpus")) is not None:
        box["cpus"] = cpus
    if (memory := said.number("environment.memory_mb")) is not None:
        box["memory"] = f"{int(memory)}m"
    elif said.text("environment.memory"):
        box["memory"] = str(said.at("environment.memory")).lower()
    if (disk := said.number("environment.storage_mb")) is not None:
        box["disk"] = f"{int(disk)}m"
    return box


class _Said:
    """The settings of a task, each asked for by its dotted name. EnvError for a value of another kind."""

    def __init__(self, name: str, tree: Any) -> None:
        if not isinstance(tree, dict):
            raise EnvError(f"{name}: its settings are a table of keys; got {type(tree).__name__}")
        self._name, self._tree = name, tree

    def at(self, key: str) -> Any:
        at: Any = self._tree
        for part in key.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        return at

    def text(self, key: str) -> str | None:
        value = self.at(key)
        if value is not None and not isinstance(value, str):
            raise EnvError(f"{self._name}: {key} is a text; got {value!r}")
        return value or None

    def number(self, key: str) -> float | None:
        value = self.at(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise EnvError(f"{self._name}: {key} is a number above 0; got {value!r}")
        return value

    def seconds(self, key: str, otherwise: float) -> float:
        value = self.number(key)
        return otherwise if value is None else float(value)

    def variables(self, key: str) -> dict[str, str]:
        value = self.at(key) or {}
        if not isinstance(value, dict):
            raise EnvError(f"{self._name}: {key} is a table of variables; got {value!r}")
        for name, said in value.items():
            if str(said).startswith("${"):
                raise EnvError(
                    f"{self._name}: {key}.{name} is taken from this host's environment ({said}), which no box sees; "
                    "write its value"
                )
        return {str(name): str(said) for name, said in value.items()}
