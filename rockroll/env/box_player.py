"""An environment's own side, inside a sandbox: this file alone is started there, with Python's own modules and no more.

In: messages on stdin, the files of the environment in the first one. Out: a reply to each on what was stdout. Leaves
checking what the environment returned to the other side (boxed.py), which trusts nothing that comes from here.

A message is its length in four bytes, then JSON: [method, argument] there, ["ok", value] or ["error", text] back. What
the environment prints, or reads from stdin, is apart from both.
"""

import asyncio
import importlib
import inspect
import json
import operator
import os
import struct
import sys
import tempfile
from pathlib import Path

LEAST = (3, 10)
HEAD = struct.Struct("!I")


def serve():
    asked, said = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    env = None
    while len(head := asked.read(HEAD.size)) == HEAD.size:
        method, argument = json.loads(asked.read(HEAD.unpack(head)[0]))
        try:
            if method == "make":
                env = make(argument)
                value = None
            else:
                value = play(env, method, argument, loop)
            reply = json.dumps(["ok", value])
        except Refused as error:
            reply = json.dumps(["error", str(error)])
        except Exception as error:  # noqa: BLE001  whatever the environment raises is told as it is
            where = method if env is None else f"{type(env).__name__}.{method}"
            reply = json.dumps(["error", f"{where} raised {type(error).__name__}: {error}"])
        data = reply.encode()
        said.write(HEAD.pack(len(data)) + data)
        said.flush()


class Refused(Exception):
    """What is wrong, as a sentence."""


def make(argument):
    name, options = argument["name"], argument["options"]
    if sys.version_info < LEAST:
        here = sys.version.split()[0]
        raise Refused(f"{name}: where: sandbox needs Python 3.10 or later in the sandbox's image, which has {here}")
    folder = tempfile.mkdtemp(prefix="env-")
    for path, text in argument["files"].items():
        place = Path(folder, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, "utf-8")
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(argument["module"])
    except ModuleNotFoundError as error:
        raise Refused(
            f"{name}: there is no Python module {error.name!r} in the sandbox's image, nor beside the task on this "
            "side; install it in an image and name that in the recipe's sandbox.image, or use where: process"
        ) from None
    except Exception as error:  # noqa: BLE001
        raise Refused(f"{name}: importing {argument['module']} failed: {type(error).__name__}: {error}") from None
    cls = getattr(module, argument["cls"], None)
    if cls is None:
        raise Refused(f"{argument['module']} has no class {argument['cls']!r}")
    if not all(callable(getattr(cls, method, None)) for method in ("reset", "step")):
        raise Refused(f"{name}: where: sandbox is for an Env, with reset and step; it has not both")
    try:
        taken = inspect.signature(cls).parameters
        if "split" in taken and "split" not in options:
            options = {**options, "split": argument["split"]}
    except (TypeError, ValueError):
        pass
    try:
        return cls(*argument["given"], **options)
    except Exception as error:  # noqa: BLE001
        raise Refused(f"{name} could not be made: {type(error).__name__}: {error}") from None


def play(env, method, argument, loop):
    """What it returned, as JSON can say it: numbers as numbers, ids as a list, and of `info` what rockroll reads."""
    if method == "reset":
        result = env.reset(seed=argument)
    else:
        from rockroll.env.api import Action  # brought by the first message

        result = env.step(Action.of(argument[0], tuple(argument[1]) if argument[1] else None))
    if inspect.isawaitable(result):
        result = loop.run_until_complete(awaited(result))
    if not isinstance(result, tuple):
        raise Refused(f"{method} returns a tuple; got {type(result).__name__}")
    return [told(each, i == 0) for i, each in enumerate(result)]


async def awaited(result):
    return await result


def told(value, observation):
    if isinstance(value, dict):
        kept = {name: value[name] for name in ("system", "tools") if value.get(name) is not None}
        return json.loads(json.dumps(kept))
    if observation and not isinstance(value, str):
        try:
            if isinstance(value, (bytes, bytearray)):
                raise TypeError
            return [operator.index(each) for each in value]
        except TypeError:
            raise Refused(f"an observation is text, or a list of token ids; got {type(value).__name__}") from None
    if isinstance(value, (str, bool, int, float)):
        return value
    if type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return repr(value)


if __name__ == "__main__":
    serve()
