"""Sandbox tasks of the tests, and the agent program that works on them (it runs in the box)."""

from __future__ import annotations

import asyncio
from typing import Any

from rockroll.env.api import Situation, Split
from rockroll.sandbox.client import Sandbox

ASK = b"""
import json, os, subprocess, sys, time, urllib.error, urllib.request

def ask(messages, **more):
    body = json.dumps({"model": "any", "messages": messages, **more}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body,
        {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]})
    try:
        return json.load(urllib.request.urlopen(request))["choices"][0]["message"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["code"]

goal = {"role": "user", "content": os.environ["ROCKROLL_INSTRUCTION"]}
mode = sys.argv[1]
if mode == "work":                  # two turns: copy what the model says into the file, word for word
    first = ask([goal], temperature=0.1)
    open("said", "w").write(first["content"])
    second = ask([goal, first, {"role": "user", "content": "more"}])
    open("said", "a").write(second["content"])
elif mode == "daemon":              # leaves a process behind that would spoil the result after the grade
    open("said", "w").write(ask([goal])["content"])
    subprocess.Popen(["sh", "-c", "exec -a left-behind sleep 1000"], start_new_session=True)
elif mode == "hang":
    open("said", "w").write(ask([goal])["content"])
    time.sleep(1000)
elif mode == "fail":
    open("said", "w").write(ask([goal])["content"])
    raise SystemExit(7)
elif mode == "mute":
    raise SystemExit("I have nothing to ask")
elif mode == "stubborn":            # goes on until it is told off, and then still
    while True:
        answer = ask([goal])
        if isinstance(answer, tuple):
            open("said", "a").write("%s %s\\n" % answer)
elif mode == "branches":
    for extra in ("a", "b"):
        ask([goal, {"role": "user", "content": extra}])
    open("said", "w").write("x")
elif mode == "long":
    open("said", "w").write("%s %s" % ask([{"role": "user", "content": "word " * 5000}]))
elif mode == "memory":
    ask([goal])
    open("said", "w").write("x")
    [b"x" * 1000000 for _ in iter(int, 1)]
elif mode == "shell":               # runs what the model says, as Bash, and tells that it got over it
    subprocess.run(["bash", "-c", ask([goal])["content"]])
    for one in [subprocess.Popen(["sleep", "0.1"]) for _ in range(4)]:
        one.wait()
    with open("said", "w") as said:
        said.write("x")
elif mode == "crash":
    open("said", "w").write(ask([goal])["content"])
    {}["a bug"]
elif mode == "rm":
    ask([goal])
    os.chdir("/")
    subprocess.run(["rm", "-rf", "/work"])
"""


class Said:
    """The reward is 1 where the file `said` holds what `secret` says."""

    graded: list[tuple[int, bytes]] = []
    waiting: asyncio.Event | None = None

    def __init__(self, says: str = "x") -> None:
        self.says = says

    def situation(self, seed: int, split: Split) -> Situation:
        if seed == -1:
            raise ValueError("no such seed")
        files = {"given": b"\0\xff", "deep/er": str(seed).encode(), "/opt/ask.py": ASK}
        return Situation(instruction=f'{split} {seed}: it\'s "it"', files=files, env={"A": "b c"}, secret=self.says)

    async def grade(self, sandbox: Sandbox, situation: Situation) -> float:
        assert await sandbox.read_file("/work/given") == b"\0\xff"
        left = await sandbox.execute(["pgrep", "-fc", "left-behind|ask.py"])
        assert left.stdout == b"0\n", "an agent's process is alive while the grade is taken"
        said = (await sandbox.read_file("/work/said")).decode()
        Said.graded.append((len(Said.graded), said.encode()))
        return float(said == situation.secret)


class Ungradable(Said):
    async def grade(self, sandbox: Sandbox, situation: Situation) -> Any:
        return {}["lost"]
