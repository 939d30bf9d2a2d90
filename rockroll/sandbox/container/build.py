"""An image of its own for whoever brings a Dockerfile, with or without a registry.

In: a folder with a Dockerfile, names of images to stand on in place of those that FROM names. Out: an image in the
local store whose name says what it was made from: one that is there is not made again. Leaves the default image to
image.py, and running boxes of it to everyone else.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from rockroll.errors import HostError, ImageMissing, UsageError
from rockroll.sandbox.config import DEFAULT_IMAGE
from rockroll.sandbox.container import image, runtime
from rockroll.sandbox.container.podman import Podman

REPOSITORY = "localhost/rockroll-built"
"""Names of built images begin so."""
ANY = "*"
"""In `stand_in`: every image that the local store lacks."""
_FROM = re.compile(r"^\s*FROM\s+(?P<options>(?:--\S+\s+)*)(?P<image>\S+)(?:\s+AS\s+(?P<stage>\S+))?\s*$", re.I)
REGISTRY_TIMEOUT_S = 3.0


async def build(
    podman: Podman,
    context: Path,
    dockerfile: str,
    *,
    name: str | None = None,
    stand_in: Mapping[str, str] | None = None,
    timeout_s: float = image.BUILD_TIMEOUT_S,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """The name of the image that `dockerfile` (its text) makes of the folder `context`.

    name: of the image, from somebody who knows when it is out of date; None: a digest of Dockerfile and folder.
    stand_in: the image to use in place of one that FROM names: {"ubuntu:24.04": "default"}; "*": in place of all that
    are not in the local store; "default" is rockroll's own image. RUN has the host's network. timeout_s: of the build.
    Raises ImageMissing where an image that it stands on is neither here nor to be had, HostError with the last thing
    that was said where the build fails.
    """
    text, bases = await _standing_on(podman, dockerfile, dict(stand_in or {}))
    name = name or f"{REPOSITORY}:{await asyncio.to_thread(_digest, context, text)}"
    async with image.locked("build.lock"):
        if await podman.image_exists(name):
            return name
        for base in bases:
            await _have(podman, base, say)
        say(f"building {name} of {context}")
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "Dockerfile"
            file.write_text(text)
            # chroot isolation and the host's network: as image.py builds its own
            options = ("--isolation", "chroot", "--network", "host", "--pull=false", "--force-rm")
            argv = ("build", *options, "--file", str(file), "--tag", name, str(context))
            refused = await image.run(runtime.podman_binary(), *argv, timeout_s=timeout_s)
        if refused is not None:
            raise HostError(f"{context}: its Dockerfile could not be built: {refused}")
    return name


async def _standing_on(podman: Podman, dockerfile: str, stand_in: dict[str, str]) -> tuple[str, list[str]]:
    """The Dockerfile with every FROM as it is to be built, and the images that it stands on."""
    lines, stages, bases = [], set[str](), []
    for line in dockerfile.splitlines():
        if found := _FROM.match(line):
            base = found["image"]
            if base != "scratch" and base.lower() not in stages and not base.startswith("$"):
                stands = stand_in.get(base)
                if stands is None and ANY in stand_in and not await podman.image_exists(_whole(base)):
                    stands = stand_in[ANY]
                base = DEFAULT_IMAGE if stands == "default" else stands or base
                bases.append(_whole(base))
                stage = f" AS {found['stage']}" if found["stage"] else ""
                line = f"FROM {_whole(base)}{stage}"
            if found["stage"]:
                stages.add(found["stage"].lower())
        lines.append(line)
    if not stages and not any(_FROM.match(line) for line in lines):
        raise UsageError("a Dockerfile begins with FROM IMAGE; this one has no such line")
    return "\n".join(lines) + "\n", list(dict.fromkeys(bases))


async def _have(podman: Podman, base: str, say: Callable[[str], None]) -> None:
    if await podman.image_exists(base):
        return
    if base == DEFAULT_IMAGE:
        await image.ensure(podman, say=say)
        return
    cure = (
        f"load it (`podman load`), or stand it on another image, as in `--stand-in {_short(base)}=default` or in a "
        f'recipe\'s task `options: {{stand_in: {{"{_short(base)}": default}}}}`'
    )
    host = base.partition("/")[0]
    host = image.REGISTRY if host == "docker.io" else host
    if host == "localhost":
        raise ImageMissing(f"FROM {_short(base)}: it is not in the local store; {cure}")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, 443), REGISTRY_TIMEOUT_S)
        writer.close()
    except (OSError, TimeoutError):
        raise ImageMissing(
            f"FROM {_short(base)}: it is not in the local store, and {host} does not answer; {cure}"
        ) from None
    say(f"pulling {base}")
    try:
        await podman.image_pull(base, image.PULL_TIMEOUT_S)
    except (ImageMissing, HostError) as error:
        raise ImageMissing(f"FROM {_short(base)}: it could not be pulled ({error.message}); {cure}") from None


def _whole(name: str) -> str:
    """The name with its registry, as Docker reads a short one: Podman would ask which one is meant."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


def _short(name: str) -> str:
    return name.removeprefix("docker.io/library/").removeprefix("docker.io/")


def _digest(context: Path, dockerfile: str) -> str:
    """Of all that a build reads: the Dockerfile, and names, modes and contents of the folder."""
    total = hashlib.sha256(dockerfile.encode())
    for path in sorted(context.rglob("*")):
        about = path.lstat()
        total.update(f"\0{path.relative_to(context)}\0{about.st_mode}\0".encode("utf-8", "surrogateescape"))
        if path.is_symlink():
            total.update(str(path.readlink()).encode("utf-8", "surrogateescape"))
        elif path.is_file():
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:24]
