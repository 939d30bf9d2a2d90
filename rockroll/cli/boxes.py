"""`rockroll sandbox up | ls | stop | start | restore | restart | down`: sandboxes from their making to their removal.

In: the command line. Out: ids, one a line, a table, or JSON with --json. Leaves the work to the node, and what is done
in a sandbox to commands.py, processes.py and files.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockroll.cli.arguments import Ids, Json, pairs
from rockroll.cli.loop import run
from rockroll.cli.node import connected, side_by_side
from rockroll.cli.show import age, print_json, print_table, public
from rockroll.cli.text import safe, safe_lines
from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.node_client import Node
    from rockroll.sandbox.wire import Restored, SandboxInfo

STATES = ("starting", "running", "paused", "stopped", "exited", "gone")


def up(
    image: Annotated[
        str | None, typer.Argument(help="An image of the local store; rockroll's own if left out.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many; they start side by side.")] = 1,
    name: Annotated[str | None, typer.Option(help="A name; with --count N they are NAME-1 to NAME-N.")] = None,
    cpus: Annotated[float, typer.Option(help="CPU seconds a second; 0.5 is half a core.")] = 1.0,
    cpuset: Annotated[str | None, typer.Option(help="The CPUs to run on, as in 0-1; any if left out.")] = None,
    memory: Annotated[str, typer.Option(help="Memory and swap together, as in 512m or 2g.")] = "512m",
    pids: Annotated[int, typer.Option(help="Most processes and threads at one time.")] = 256,
    disk: Annotated[
        str | None, typer.Option(help="Most bytes of files it may write, as in 2g; no limit if left out.")
    ] = None,
    snapshot: Annotated[str | None, typer.Option(help="Begin with the files of this snapshot, and its image.")] = None,
    network: Annotated[
        str, typer.Option(help="none: sealed. allow:HOST,*.HOST,HOST:PORT: only these. open: Podman's network.")
    ] = "none",
    ttl: Annotated[str | None, typer.Option(help="Removed after this time, as in 30m or 1h.")] = None,
    idle_ttl: Annotated[str | None, typer.Option(help="Removed after this time without a command, as in 10m.")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A variable of every process inside.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A label, for you to find it by.")] = None,
    mount: Annotated[list[str] | None, typer.Option(metavar="SRC:DST[:ro]", help="A host path to show inside.")] = None,
    allow_unenforced: Annotated[
        bool, typer.Option("--allow-unenforced", help="Start even where this host cannot enforce a limit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start sandboxes. They live until `down`, or until their --ttl is over.

    Examples:

      rockroll sandbox up

      rockroll sandbox up --name build --cpus 2 --memory 2g --mount $PWD:/src:ro

      rockroll sandbox up --count 16 --ttl 1h --label job=eval --json

      rockroll sandbox up --disk 2g --snapshot ready

      rockroll sandbox up --network 'allow:pypi.org,*.pythonhosted.org'
    """
    from rockroll.sandbox.config import SandboxConfig

    try:
        config = SandboxConfig(
            image=image,
            cpus=cpus,
            cpuset=cpuset,
            memory=memory,
            pids=pids,
            disk=disk,
            snapshot=snapshot,
            network=network,
            ttl=ttl,
            idle_ttl=idle_ttl,
            env=pairs("--env", env),
            labels=pairs("--label", label),
            mounts=tuple(_absolute(text) for text in mount or ()),
            allow_unenforced=allow_unenforced,
        )
        names = [name] if count == 1 or name is None else [f"{name}-{i}" for i in range(1, count + 1)]
        configs = [_named(config, names[i] if name else None) for i in range(count)]
    except ValueError as error:
        raise UsageError(str(error)) from None

    async def work() -> list[SandboxInfo]:
        from rockroll.sandbox.client import Sandbox, delete_all, finish

        made = [Sandbox(each, owner="detached") for each in configs]
        try:
            await side_by_side([sandbox.start for sandbox in made])
        except BaseException:
            await finish(delete_all(made))  # all or none: nobody has to look for what a failed command left
            raise
        return [sandbox.info for sandbox in made]

    infos = run(work())
    if as_json:
        print_json([public(info) for info in infos])
    else:
        for info in infos:
            print(safe(info.id))
    for unenforced in sorted({text for info in infos for text in info.unenforced}):
        print(f"rockroll: not enforced on this host: {safe(unenforced)}", file=sys.stderr)


def ls(
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Only those with this label.")] = None,
    state: Annotated[
        str | None, typer.Option(help=f"Only those that are {', '.join(STATES[:-1])} or {STATES[-1]}.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also the last 1,000 that are gone, and why.")] = False,
    as_json: Json = False,
) -> None:
    """List the sandboxes of this user.

    Examples:

      rockroll sandbox ls --label job=eval --state running

      rockroll sandbox ls --all
    """
    labels = pairs("--label", label)
    if state is not None and state not in STATES:
        raise UsageError(f"--state: one of {', '.join(STATES)}; got {state!r}")

    async def work() -> list[SandboxInfo]:
        from rockroll.sandbox.client import list_sandboxes

        async with connected():
            return await list_sandboxes(labels=labels, state=state, all=everything)  # type: ignore[arg-type]

    infos = run(work())
    if as_json:
        print_json([public(info) for info in infos])
        return
    rows = [
        [info.id, info.name, _state(info), info.image, age(info.created), _labels(info.labels)]
        for info in sorted(infos, key=lambda info: info.created)
    ]
    print_table(["ID", "NAME", "STATE", "IMAGE", "AGE", "LABELS"], rows)


def stop(ids: Ids, as_json: Json = False) -> None:
    """End every process in these sandboxes; their files stay, and `start` brings them up again."""
    _each(ids, "sandbox.stop", as_json)


def start(ids: Ids, as_json: Json = False) -> None:
    """Start sandboxes again that were stopped."""
    _each(ids, "sandbox.start", as_json)


def restore(ids: Ids, as_json: Json = False) -> None:
    """Bring back sandboxes that died or were stopped, with their files and their sessions' folder, variables,
    functions, aliases and options; say what is lost.

    Example:

      rockroll sandbox restore demo
    """
    _bring_back(ids, False, as_json)


def restart(ids: Ids, as_json: Json = False) -> None:
    """End every process in these sandboxes and bring them back, as `restore` does."""
    _bring_back(ids, True, as_json)


def down(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids, beginnings of ids, or names.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every sandbox of this user.")] = False,
    as_json: Json = False,
) -> None:
    """Remove sandboxes and all that is in them.

    Examples:

      rockroll sandbox down demo

      rockroll sandbox down --all
    """
    if bool(ids) == everything:
        raise UsageError("down: name the sandboxes to remove, or say --all")
    _each(ids, "sandbox.delete", as_json)


def _each(ids: list[str] | None, method: str, as_json: bool) -> None:
    """One method on each of these sandboxes, or on all; every one is tried before the first error is raised."""

    async def work() -> list[SandboxInfo]:
        from rockroll.sandbox.wire import Ref, SandboxInfo

        done: list[SandboxInfo] = []
        async with connected() as node:
            targets = list(dict.fromkeys(ids)) if ids is not None else [info.id for info in await _all(node)]

            async def one(target: str) -> None:
                done.append(await node.call(method, Ref(id=target), type=SandboxInfo))

            errors = await side_by_side([lambda target=target: one(target) for target in targets], keep_going=True)
        for info in done:
            if not as_json:
                print(safe(info.id))
        if as_json:
            print_json([public(info) for info in done])
        for error in errors[1:]:
            print(f"rockroll: {safe_lines(str(error))}", file=sys.stderr)
        if errors:
            raise errors[0]
        return done

    run(work())


async def _all(node: Node) -> list[SandboxInfo]:
    from rockroll.sandbox.wire import Empty, SandboxInfo

    return await node.call("sandbox.list", Empty(), type=list[SandboxInfo])


def _bring_back(ids: list[str], restart: bool, as_json: bool) -> None:
    async def work() -> list[Restored]:
        from rockroll.sandbox.wire import Restore, Restored

        done: list[Restored] = []
        async with connected() as node:

            async def one(target: str) -> None:
                body = Restore(id=target, restart=restart)
                done.append(await node.call("sandbox.restore", body, type=Restored))

            targets = list(dict.fromkeys(ids))
            errors = await side_by_side([lambda target=target: one(target) for target in targets], keep_going=True)
        for error in errors[1:]:
            print(f"rockroll: {safe_lines(str(error))}", file=sys.stderr)
        if as_json:
            fields = ("cause", "sessions", "lost")
            print_json([{**public(each.info), **{name: getattr(each, name) for name in fields}} for each in done])
        else:
            for each in done:
                print(safe(each.info.id))
                said = [f"sessions: {', '.join(each.sessions)}"] if each.sessions else []
                said += [f"lost: {'; '.join(each.lost)}"] if each.lost else []
                print(f"rockroll: {safe('; '.join(said) or 'it runs; nothing was lost')}", file=sys.stderr)
        if errors:
            raise errors[0]
        return done

    run(work())


def _absolute(mount: str) -> str:
    """SRC may be written relative to this folder; the node runs elsewhere."""
    source, colon, rest = mount.partition(":")
    return f"{Path(source).expanduser().absolute()}{colon}{rest}" if source and colon else mount


def _named(config: Any, name: str | None) -> Any:
    import dataclasses

    return config if name is None else dataclasses.replace(config, name=name)


def _labels(labels: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _state(info: SandboxInfo) -> str:
    return f"{info.state} ({info.cause})" if info.cause else info.state
