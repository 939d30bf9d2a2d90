"""What the test of the docs puts in the place of a command: it is run as it is printed, but for these rules.

python as_printed.py NAME ARGUMENT…        $ROCKROLL_DOCS says which: `parts`, or `whole` where training is done too

git clone            is not done: the checkout is there
scripts/quickstart   its last line alone: the set-up was made before the tests
scripts/test, check  are not run from within a test
rockroll train       `whole`: one small step (SHORT); `parts`: rockroll plan, of the same recipe and settings
rockroll eval        `whole`: few episodes; `parts`: rockroll plan
rockroll view        `whole`: as what serves; `parts`: left out, for want of a run
what serves          until it has printed its address, at which something answers, and is then interrupted
rockroll debug       on a terminal of its own, in which `exit` is typed
"""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

SHORT = [
    *("--set", "steps=1", "--set", "rollout.groups=2", "--set", "rollout.episodes=2", "--set", "eval.episodes=4"),
    *("--set", "rollout.concurrency=2", "--set", "train.threads=1"),
]
SERVES = ("serve", "view", "model-service")
ROCKROLL = [sys.executable, "-m", "rockroll"]


def main(name: str, *args: str) -> int:
    whole = os.environ["ROCKROLL_DOCS"] == "whole"
    if name in ("git", "scripts/test", "scripts/check"):
        return 0
    if name == "scripts/quickstart":
        args = ("train", "recipes/quickstart.yaml", *args)
    command, *rest = args
    if command in ("train", "eval") and not whole:
        settings = [word for at, word in enumerate(rest) if word == "--set" or rest[at - 1] == "--set"]
        return subprocess.call([*ROCKROLL, "plan", rest[0], *settings])
    if command == "train":
        return subprocess.call([*ROCKROLL, *args, *SHORT])
    if command == "eval":
        return subprocess.call([*ROCKROLL, *args, "--episodes", "4"])
    if command == "view" and not whole:
        return 0
    if command in SERVES:
        return _served([*args, "--port", "0"])
    if command == "debug":
        return _on_a_terminal(args)
    return subprocess.call([*ROCKROLL, *args])


def _served(args: list[str]) -> int:
    with subprocess.Popen([*ROCKROLL, *args], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        try:
            assert found, f"no address in {said!r}"
            urllib.request.urlopen(found[0])
        except urllib.error.HTTPError:  # it asks for a token: somebody answers
            pass
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
    return 0 if code in (0, 130) else code


def _on_a_terminal(args: tuple[str, ...]) -> int:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*ROCKROLL, *args])
    os.write(terminal, b"exit\n")
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:  # the terminal's other side is closed
        pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
