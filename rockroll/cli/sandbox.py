"""`rockroll sandbox …`: sandboxes by hand.

In: the command line. Out: tables for people, JSON with --json, the raw bytes of what a command printed. Leaves the
work to the node: what this file imports at its top is what `--help` needs and no more.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockroll.cli.server_option import server_option
from rockroll.cli.text import safe as _safe
from rockroll.cli.text import safe_lines
from rockroll.errors import RockrollError, UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox
    from rockroll.sandbox.node_client import Node
    from rockroll.sandbox.wire import ProcessInfo, Restored, SandboxInfo, SnapshotInfo

AT_ONCE = 8
"""Sandboxes started or removed at a time: Podman is fastest with 4 to 8 under way."""
MARKUP = "rich"
STATES = ("starting", "running", "paused", "stopped", "exited", "gone")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
    help="Sealed sandboxes: start them, run commands in them, copy files, look at them, remove them.\n\n"
    "A sandbox has no network, no capabilities and none of your files. Example:\n\n"
    "  rockroll sandbox up --name demo\n\n"
    "  rockroll sandbox exec demo -- bash -c 'id; uname -a'\n\n"
    "  rockroll sandbox down demo",
)

app.callback()(server_option)

Id = Annotated[str, typer.Argument(metavar="ID", help="An id, the beginning of one, or a name.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, beginnings of ids, or names.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
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
    network: Annotated[str, typer.Option(help="none: sealed. open: Podman's default network.")] = "none",
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
            network=network,  # type: ignore[arg-type]  # checked by SandboxConfig, whose sentence says how to write it
            ttl=ttl,
            idle_ttl=idle_ttl,
            env=_pairs("--env", env),
            labels=_pairs("--label", label),
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
            await _side_by_side([sandbox.start for sandbox in made])
        except BaseException:
            await finish(delete_all(made))  # all or none: nobody has to look for what a failed command left
            raise
        return [sandbox.info for sandbox in made]

    infos = _run(work())
    if as_json:
        _print_json([_public(info) for info in infos])
    else:
        for info in infos:
            print(_safe(info.id))
    for unenforced in sorted({text for info in infos for text in info.unenforced}):
        print(f"rockroll: not enforced on this host: {_safe(unenforced)}", file=sys.stderr)


@app.command()
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
    labels = _pairs("--label", label)
    if state is not None and state not in STATES:
        raise UsageError(f"--state: one of {', '.join(STATES)}; got {state!r}")

    async def work() -> list[SandboxInfo]:
        from rockroll.sandbox.client import list_sandboxes

        async with _node():
            return await list_sandboxes(labels=labels, state=state, all=everything)  # type: ignore[arg-type]

    infos = _run(work())
    if as_json:
        _print_json([_public(info) for info in infos])
        return
    rows = [
        [info.id, info.name, _state(info), info.image, _age(info.created), _labels(info.labels)]
        for info in sorted(infos, key=lambda info: info.created)
    ]
    _print_table(["ID", "NAME", "STATE", "IMAGE", "AGE", "LABELS"], rows)


@app.command()
def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A path here, or ID:PATH in a sandbox.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A path here, or ID:PATH in a sandbox.")],
    all_links: Annotated[
        bool, typer.Option("--all-links", help="Out of a sandbox: symbolic links that lead out of the tree, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy a file or a folder into a sandbox, or out of it.

    DST is the path that the copy will have; with a slash at its end, the folder it goes into. Modes, times, links,
    empty folders and holes are kept; owners are not. What cannot be copied (sockets, FIFOs, devices) is left out and
    named on standard error.

    Examples:

      rockroll sandbox cp data.csv demo:/data/

      rockroll sandbox cp src demo:/srv/src

      rockroll sandbox cp demo:/srv/out results
    """
    from rockroll.cli.files import Places, show_copied

    places = Places(source, target)

    async def work() -> Any:
        async with _attached(places.box) as sandbox:
            return await places.copy(sandbox, links="all" if all_links else "inside")

    done = _run(work())
    if as_json:
        import msgspec

        _print_json(msgspec.to_builtins(done))
    else:
        show_copied(done, _safe)


@app.command()
def watch(
    id: Id,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or a file in the sandbox.")],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="All folders below it, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """Print what changes in a folder of a sandbox, as it changes, until Ctrl-C or the sandbox's end.

    Examples:

      rockroll sandbox watch demo /srv -r

      rockroll sandbox watch demo /srv/out --json | jq -r 'select(.kind == "created").path'
    """

    async def work() -> None:
        import json

        import msgspec

        async with _attached(id) as sandbox:
            async for event in sandbox.watch(path, recursive=recursive):
                if as_json:
                    print(json.dumps(msgspec.to_builtins(event)), flush=True)
                else:
                    before = f" (was {_safe(event.moved_from)})" if event.moved_from is not None else ""
                    print(f"{event.kind:8}  {_safe(event.path)}{before}", flush=True)

    _run(work())


@app.command()
def logs(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sandbox is gone, or Ctrl-C.")] = False,
    offset: Annotated[int, typer.Option(min=0, help="Begin at this byte of the log.")] = 0,
    tail: Annotated[int | None, typer.Option(min=0, help="Begin with the last N lines.")] = None,
) -> None:
    """Print what the commands of a sandbox printed, sessions and programs alike.

    Examples:

      rockroll sandbox logs demo --tail 20 -f

      rockroll sandbox logs demo --offset 4096
    """
    from rockroll.cli.processes import last_lines

    async def work() -> None:
        async with _attached(id) as sandbox:
            begin = offset
            if tail is not None:
                kept, begin = await last_lines(sandbox.logs(offset=offset), tail, offset)
                sys.stdout.buffer.write(kept)
                sys.stdout.buffer.flush()
            if tail is None or follow:
                async for data in sandbox.logs(offset=begin, follow=follow):
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()

    _run(work())


@app.command()
def ps(id: Id, as_json: Json = False) -> None:
    """List the processes of a sandbox: pids as the sandbox numbers them, and what each uses.

    Example:

      rockroll sandbox ps demo
    """
    import msgspec

    from rockroll.cli.processes import HEADER, row

    async def work() -> list[ProcessInfo]:
        async with _attached(id) as sandbox:
            return await sandbox.processes()

    found = _run(work())
    if as_json:
        _print_json([msgspec.structs.asdict(each) for each in found])
    else:
        _print_table(HEADER, [row(each) for each in found])


@app.command()
def kill(
    id: Id,
    pid: Annotated[int, typer.Argument(metavar="PID", help="As `ps` shows it.")],
    signal: Annotated[str, typer.Option("--signal", "-s", help="A name or number, as in TERM, INT or 9.")] = "TERM",
) -> None:
    """Send a signal to one process of a sandbox.

    Example:

      rockroll sandbox kill demo 27 --signal INT
    """

    async def work() -> None:
        async with _attached(id) as sandbox:
            await sandbox.signal(pid, signal)

    _run(work())


@app.command()
def env(
    id: Id,
    changes: Annotated[list[str] | None, typer.Argument(metavar="[K=V]...", help="Variables to set.")] = None,
    unset: Annotated[list[str] | None, typer.Option(metavar="K", help="A variable to remove.")] = None,
    as_json: Json = False,
) -> None:
    """Show the variables of a sandbox, or set some for what runs in it from now on, open sessions included.

    Examples:

      rockroll sandbox env demo

      rockroll sandbox env demo STAGE=two --unset DEBUG
    """
    wanted = {**_pairs("env", changes), **dict.fromkeys(unset or ())}

    async def work() -> dict[str, str]:
        async with _attached(id) as sandbox:
            return await sandbox.set_env(wanted) if wanted else await sandbox.env()

    found = _run(work())
    if as_json:
        _print_json(found)
    elif not wanted:
        for key in sorted(found):
            print(f"{key}={_safe(found[key])}")


@app.command()
def stats(id: Id, as_json: Json = False) -> None:
    """Show what a sandbox uses: CPU time, memory, processes, disk."""

    async def work() -> dict[str, Any]:
        import msgspec

        async with _attached(id) as sandbox:
            return msgspec.structs.asdict(await sandbox.stats())

    seen = _run(work())
    if as_json:
        _print_json(seen)
        return
    from rockroll.units import show_size

    memory, processes = seen["memory_limit"], seen["pids_limit"]
    rows = [
        ["cpu", f"{seen['cpu_s']:.2f} s"],
        ["memory", f"{show_size(seen['memory_bytes'])} of {show_size(memory) if memory else 'no limit'}"],
        ["processes", f"{seen['pids']} of {processes or 'no limit'}"],
        ["killed for memory", str(seen["oom_kills"])],
        [
            "disk",
            show_size(seen["disk_bytes"]) + (f" of {show_size(seen['disk_limit'])}" if seen["disk_limit"] else ""),
        ],
    ]
    _print_table(None, rows)


@app.command("snapshot")
def snapshot_(
    id: Id, name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")], as_json: Json = False
) -> None:
    """Keep what a sandbox has written so far, under a name, to start others from. The sandbox goes on.

    Files only: no processes, no sessions. A running sandbox is held still while its files are copied.

    Examples:

      rockroll sandbox snapshot demo ready

      rockroll sandbox up --snapshot ready --count 4
    """

    async def work() -> SnapshotInfo:
        async with _attached(id) as sandbox:
            return await sandbox.snapshot(name)

    info = _run(work())
    if as_json:
        _print_json(_public_snapshot(info))
    else:
        print(_safe(info.name))


@app.command("snapshots")
def snapshots_(
    remove: Annotated[
        list[str] | None, typer.Option("--rm", metavar="NAME", help="Remove this one; may be given again.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the snapshots of this user, or remove some.

    Examples:

      rockroll sandbox snapshots

      rockroll sandbox snapshots --rm ready
    """

    async def work() -> list[SnapshotInfo]:
        from rockroll.sandbox.client import delete_snapshot, snapshots

        async with _node():
            if remove:
                return [await delete_snapshot(name) for name in dict.fromkeys(remove)]
            return await snapshots()

    infos = _run(work())
    if as_json:
        _print_json([_public_snapshot(info) for info in infos])
    elif remove:
        for info in infos:
            print(_safe(info.name))
    else:
        from rockroll.units import show_size

        rows = [[info.name, show_size(info.size_bytes), info.image, _age(info.created)] for info in infos]
        _print_table(["NAME", "SIZE", "IMAGE", "AGE"], rows)


@app.command()
def fork(
    id: Id,
    name: Annotated[str | None, typer.Option(help="A name for the new one.")] = None,
    as_json: Json = False,
) -> None:
    """Start another sandbox of the same settings with a copy of this one's files. It lives until `down`.

    Neither sees what the other writes later. Files only: no processes, no sessions.

    Examples:

      rockroll sandbox fork demo --name try-1

      rockroll sandbox fork demo --json
    """

    async def work() -> SandboxInfo:
        async with _attached(id) as sandbox:
            return (await sandbox.fork(name=name, owner="detached")).info

    info = _run(work())
    if as_json:
        _print_json([_public(info)])
    else:
        print(_safe(info.id))


@app.command()
def stop(ids: Ids, as_json: Json = False) -> None:
    """End every process in these sandboxes; their files stay, and `start` brings them up again."""
    _each(ids, "sandbox.stop", as_json)


@app.command()
def start(ids: Ids, as_json: Json = False) -> None:
    """Start sandboxes again that were stopped."""
    _each(ids, "sandbox.start", as_json)


@app.command()
def restore(ids: Ids, as_json: Json = False) -> None:
    """Bring back sandboxes that died or were stopped, with their files and their sessions' folder, variables,
    functions, aliases and options; say what is lost.

    Example:

      rockroll sandbox restore demo
    """
    _bring_back(ids, False, as_json)


@app.command()
def restart(ids: Ids, as_json: Json = False) -> None:
    """End every process in these sandboxes and bring them back, as `restore` does."""
    _bring_back(ids, True, as_json)


@app.command()
def down(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Ids, beginnings of ids, or names.")] = None,
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


# ---- between the commands and the node ---------------------------------------------------------------------------


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    from rockroll.cli.loop import run

    return run(work)


@asynccontextmanager
async def _node() -> AsyncIterator[Node]:
    from rockroll.sandbox import where
    from rockroll.sandbox.node_client import close_node, connect_to

    try:
        yield await connect_to(where.server())
    finally:
        await close_node()


@asynccontextmanager
async def _attached(id: str) -> AsyncIterator[Sandbox]:
    from rockroll.sandbox.client import Sandbox

    async with _node():
        yield await Sandbox.attach(id)


async def _all(node: Node) -> list[SandboxInfo]:
    from rockroll.sandbox.wire import Empty, SandboxInfo

    return await node.call("sandbox.list", Empty(), type=list[SandboxInfo])


def _each(ids: list[str] | None, method: str, as_json: bool) -> None:
    """One method on each of these sandboxes, or on all; every one is tried before the first error is raised."""

    async def work() -> list[SandboxInfo]:
        from rockroll.sandbox.wire import Ref, SandboxInfo

        done: list[SandboxInfo] = []
        async with _node() as node:
            targets = list(dict.fromkeys(ids)) if ids is not None else [info.id for info in await _all(node)]

            async def one(target: str) -> None:
                done.append(await node.call(method, Ref(id=target), type=SandboxInfo))

            errors = await _side_by_side([lambda target=target: one(target) for target in targets], keep_going=True)
        for info in done:
            if not as_json:
                print(_safe(info.id))
        if as_json:
            _print_json([_public(info) for info in done])
        for error in errors[1:]:
            print(f"rockroll: {safe_lines(str(error))}", file=sys.stderr)
        if errors:
            raise errors[0]
        return done

    _run(work())


def _bring_back(ids: list[str], restart: bool, as_json: bool) -> None:
    async def work() -> list[Restored]:
        from rockroll.sandbox.wire import Restore, Restored

        done: list[Restored] = []
        async with _node() as node:

            async def one(target: str) -> None:
                body = Restore(id=target, restart=restart)
                done.append(await node.call("sandbox.restore", body, type=Restored))

            targets = list(dict.fromkeys(ids))
            errors = await _side_by_side([lambda target=target: one(target) for target in targets], keep_going=True)
        for error in errors[1:]:
            print(f"rockroll: {safe_lines(str(error))}", file=sys.stderr)
        if as_json:
            fields = ("cause", "sessions", "lost")
            _print_json([{**_public(each.info), **{name: getattr(each, name) for name in fields}} for each in done])
        else:
            for each in done:
                print(_safe(each.info.id))
                said = [f"sessions: {', '.join(each.sessions)}"] if each.sessions else []
                said += [f"lost: {'; '.join(each.lost)}"] if each.lost else []
                print(f"rockroll: {_safe('; '.join(said) or 'it runs; nothing was lost')}", file=sys.stderr)
        if errors:
            raise errors[0]
        return done

    _run(work())


async def _side_by_side(jobs: list[Callable[[], Awaitable[Any]]], *, keep_going: bool = False) -> list[RockrollError]:
    """Runs jobs, AT_ONCE at a time. The first error ends the others and is raised; or, with keep_going, all errors are
    returned at the end."""
    import asyncio

    slots = asyncio.Semaphore(AT_ONCE)
    errors: list[RockrollError] = []

    async def one(job: Callable[[], Awaitable[Any]]) -> None:
        async with slots:
            try:
                await job()
            except RockrollError as error:
                if not keep_going:
                    raise
                errors.append(error)

    tasks = [asyncio.ensure_future(one(job)) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return errors


# ---- what people write and read ------------------------------------------------------------------------------------


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{option}: K=V, as in {option} LANG=C; got {text!r}")
        found[key] = value
    return found


def _seconds(option: str, text: str | None) -> float | None:
    from rockroll.units import seconds

    try:
        return None if text is None else seconds(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _absolute(mount: str) -> str:
    """SRC may be written relative to this folder; the node runs elsewhere."""
    source, colon, rest = mount.partition(":")
    return f"{Path(source).expanduser().absolute()}{colon}{rest}" if source and colon else mount


def _named(config: Any, name: str | None) -> Any:
    import dataclasses

    return config if name is None else dataclasses.replace(config, name=name)


def _public(info: SandboxInfo) -> dict[str, Any]:
    """A sandbox as JSON; its environment stays out, since people put secrets there."""
    import msgspec

    fields = msgspec.structs.asdict(info)
    del fields["env"]
    return fields


def _public_snapshot(info: SnapshotInfo) -> dict[str, Any]:
    """As _public."""
    import msgspec

    fields = msgspec.structs.asdict(info)
    fields["config"] = {key: value for key, value in info.config.items() if key != "env"}
    return fields


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2))  # ASCII: a control character in a label comes out escaped


def _labels(labels: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _state(info: SandboxInfo) -> str:
    return f"{info.state} ({info.cause})" if info.cause else info.state


def _age(created: float) -> str:
    import time

    seconds = max(0, int(time.time() - created))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _print_table(header: list[str] | None, rows: list[list[str]]) -> None:
    """Columns as wide as their widest cell, nothing cut: what is piped into another program stays whole."""
    lines = [[_safe(cell) for cell in row] for row in ([header] if header else []) + rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
