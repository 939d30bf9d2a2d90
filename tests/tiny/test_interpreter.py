"""The strict interpreter of set-up against Bash and the core utilities, in a sandbox."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rockroll import Sandbox, SandboxConfig
from rockroll.env import shell_interpreter as interpreter
from rockroll.sandbox import node_client

NAMES = ("abc", "xyz", "qrs")

IN_THE_BOX = """
import json, os, shutil, subprocess, sys
done = []
for files, command in json.load(open("/tmp/cases.json")):
    shutil.rmtree("/tmp/case", ignore_errors=True)
    os.mkdir("/tmp/case")
    for name, text in files.items():
        open(f"/tmp/case/{name}", "w").write(text)
    ran = subprocess.run(["bash", "-c", command], cwd="/tmp/case", stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    after = {name: open(f"/tmp/case/{name}").read() for name in os.listdir("/tmp/case")}
    done.append([after, ran.stdout.decode(), ran.returncode])
json.dump(done, open("/tmp/done.json", "w"))
"""


def cases(count: int) -> list[tuple[dict[str, str], str]]:
    """Commands of every form, on files that are or are not there."""
    draw = random.Random(0)
    found: list[tuple[dict[str, str], str]] = []
    while len(found) < count:
        files = {name: "".join(draw.choices("ab \n", k=draw.randrange(6))) for name in draw.sample(NAMES, 2)}
        words = draw.choices(["amber", "echo", "abc", "n"], k=draw.randrange(4))
        names = draw.choices(NAMES, k=draw.randrange(1, 4))
        how = draw.choice([">", ">>"])
        command = draw.choice(
            [
                " ".join(["echo", *words]),
                " ".join(["echo", *words, how, names[0]]),
                " ".join(["cat", *names]),
                " ".join(["cat", *names[:-1], "abc", how, "xyz" if "xyz" not in names[:-1] else "new"]),
                " ".join(["rm", *names]),
                f"cp {names[0]} {names[-1]}",
                f"mv {names[0]} {names[-1]}",
                "ls",
            ]
        )
        found.append((files, command))
    return found


async def test_it_does_what_bash_does(node_home: Path) -> None:
    several = cases(400)
    async with Sandbox(SandboxConfig(memory="64m", pids=64)) as box:
        await box.write_file("/tmp/cases.json", json.dumps(several))
        ran = await box.execute(["python3", "-c", IN_THE_BOX], timeout=60)
        assert (ran.outcome, ran.exit_code) == ("ok", 0), ran
        real = json.loads(await box.read_file("/tmp/done.json"))
    await node_client.close_node()
    for (files, command), (after, output, code) in zip(several, real, strict=True):
        ours = interpreter.run({name: text.encode() for name, text in files.items()}, command)
        assert ours is not None, command
        assert ({name: data.decode() for name, data in ours[0].items()}, ours[1].decode(), ours[2]) == (
            after,
            output,
            code,
        ), (files, command)


@pytest.mark.parametrize(
    "command",
    [
        "", "echo", "grep amber abc", "cat", "rm", "cp abc", "cp abc xyz qrs", "ls abc", "rm -r abc",
        "cat abc > abc", "cat > xyz", "rm abc > xyz", "ls > abc",
        "echo  amber", "echo amber >abc", "echo amber > abc xyz", "echo $HOME", "echo amber; rm abc", "rm *",
        "cat ../abc", "echo amber > /abc", "echo amber\nrm abc", "echo amber ", "cd abc", "echo -n amber", "> abc",
    ],
)  # fmt: skip
def test_what_it_does_not_know_for_certain_it_refuses(command: str) -> None:
    known = {"echo"}
    assert (interpreter.run({"abc": b"x\n"}, command) is None) == (command not in known)


def test_it_leaves_the_files_it_was_given_alone() -> None:
    files = {"abc": b"x\n"}
    for command in ("rm abc", "echo amber >> abc", "mv abc xyz"):
        interpreter.run(files, command)
    assert files == {"abc": b"x\n"}
