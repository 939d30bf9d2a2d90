"""The default image, with or without a registry.

In: a Podman client. Out: `localhost/rockroll-base:1` in its store: Debian or Ubuntu with bash, coreutils, python3, git,
curl and procps. Leaves other images to `podman pull`'s users (`rockroll image pull`).
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from rockroll import home
from rockroll.errors import HostError, ImageMissing
from rockroll.sandbox.config import DEFAULT_IMAGE
from rockroll.sandbox.container import runtime
from rockroll.sandbox.container.podman import Podman

PACKAGES = ("bash", "coreutils", "python3", "git", "curl", "procps", "ca-certificates")
RECIPE_LABEL = "rockroll.recipe"
REGISTRY = "registry-1.docker.io"
REGISTRY_TIMEOUT_S = 3.0
PULL_TIMEOUT_S = 120.0
BUILD_TIMEOUT_S = 900.0
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
# Compiled ahead: a box's writable layer starts empty, so that Python would compile again in each (12 ms a start now).
FINISH = (
    "python3 -m compileall -q -j 0 /usr/lib/python3 /usr/lib/python3.* >/dev/null 2>&1 || true; "
    "rm -rf /usr/lib/python3*/sitecustomize.py /etc/python3*/sitecustomize.py "
    "/var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/*.log /usr/share/man/* /usr/share/locale/* /usr/share/info/*"
)
# mmdebstrap leaves this host's own there: a sealed box would ask a name server that it cannot reach, and show it.
FORGET = ': > "$1/etc/resolv.conf"; echo sandbox > "$1/etc/hostname"'
RECIPE = hashlib.sha256(repr((PACKAGES, ENVIRONMENT, FINISH, FORGET)).encode()).hexdigest()[:12]


class Image(msgspec.Struct, frozen=True):
    """One image of the local store."""

    name: str
    id: str
    size_bytes: int
    created: int
    """Unix time in seconds."""
    default: bool
    """Whether it is the image of a sandbox that names none."""
    source: str = "present"
    """How `ensure` came by it: present, tar, registry or mmdebstrap."""


async def images(podman: Podman) -> list[Image]:
    """Every named image of the store, the default one first."""
    found = []
    for raw in await podman.images():
        for name in raw.get("Names") or raw.get("RepoTags") or []:
            found.append(_image(name, raw, raw["Created"]))
    return sorted(found, key=lambda image: (not image.default, image.name))


async def ensure(
    podman: Podman,
    *,
    rebuild: bool = False,
    tar: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Image:
    """The default image: what is there if it is current, else imported, pulled or made. About 20 s without a registry.

    rebuild: make it anew. tar: import this root file system instead of making one. say: told each stage.
    Raises HostError with the cure where no way works.
    """
    async with locked("lock"):
        if not rebuild and tar is None and await _current(podman):
            return await _inspect(podman, "present")
        old = [each.id for each in await images(podman) if each.default]
        made = await _make(podman, rebuild, tar, say)
        for id in old:
            if id != made.id:
                with suppress(HostError, ImageMissing):  # a sandbox may still stand on it
                    await podman.image_remove(id)
        return made


async def _make(podman: Podman, rebuild: bool, tar: Path | None, say: Callable[[str], None]) -> Image:
    kept = home.home() / "images" / f"rockroll-base-{RECIPE}.tar"
    if tar is not None or (kept.exists() and not rebuild):
        say(f"importing {tar or kept}")
        await _import(podman, tar or kept)
        return await _inspect(podman, "tar")
    refused = await _from_registry(podman, say)
    if refused is None:
        return await _inspect(podman, "registry")
    say(f"no registry: {refused}")
    await _mmdebstrap(kept, say)
    say(f"importing {kept}")
    await _import(podman, kept)
    return await _inspect(podman, "mmdebstrap")


async def _current(podman: Podman) -> bool:
    try:
        found = await podman.image_inspect(DEFAULT_IMAGE)
    except ImageMissing:
        return False
    return (found.get("Labels") or {}).get(RECIPE_LABEL) == RECIPE


async def _inspect(podman: Podman, source: str) -> Image:
    for image in await images(podman):
        if image.default:
            return msgspec.structs.replace(image, source=source)
    raise HostError(f"{DEFAULT_IMAGE} was made and is not in Podman's store; see `podman images`")


def _image(name: str, raw: dict[str, Any], created: int) -> Image:
    return Image(name, raw["Id"].removeprefix("sha256:"), raw["Size"], created, name == DEFAULT_IMAGE)


async def _import(podman: Podman, tar: Path) -> None:
    if not tar.is_file():
        raise HostError(f"{tar} is not a file; give the tar of a root file system")
    changes = [f"ENV {key}={value}" for key, value in ENVIRONMENT.items()]
    await podman.image_import(tar, DEFAULT_IMAGE, [*changes, f"LABEL {RECIPE_LABEL}={RECIPE}", "CMD bash"])


async def _from_registry(podman: Podman, say: Callable[[str], None]) -> str | None:
    """Builds on a small image of the registry; None when done, else why not."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(REGISTRY, 443), REGISTRY_TIMEOUT_S)
        writer.close()
    except (OSError, TimeoutError) as error:
        return f"{REGISTRY} does not answer ({str(error) or f'{REGISTRY_TIMEOUT_S:g} s'})"
    family, release = suite()
    base = f"docker.io/library/{family}:{release}" + ("-slim" if family == "debian" else "")
    say(f"pulling {base}")
    try:
        await podman.image_pull(base, PULL_TIMEOUT_S)
    except (ImageMissing, HostError) as error:
        return error.message
    say(f"installing {' '.join(PACKAGES)}")
    install = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(PACKAGES)}"
    lines = [f"FROM {base}", *(f"ENV {key}={value}" for key, value in ENVIRONMENT.items())]
    lines += [f"RUN export DEBIAN_FRONTEND=noninteractive; {install} && {{ {FINISH}; }}", 'CMD ["bash"]']
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "Containerfile").write_text("\n".join(lines) + "\n")
        # chroot isolation and the host's network: RUN then needs neither an OCI runtime's limits nor a bridge
        options = ("--isolation", "chroot", "--network", "host", "--squash", "--label", f"{RECIPE_LABEL}={RECIPE}")
        return await run(runtime.podman_binary(), "build", *options, "--tag", DEFAULT_IMAGE, directory)


async def _mmdebstrap(target: Path, say: Callable[[str], None]) -> None:
    """A root file system made of the distribution's packages, as a tar."""
    program = shutil.which("mmdebstrap")
    if not program:
        raise HostError(
            "no registry answers and mmdebstrap is not installed: the sandbox image cannot be made; "
            "run scripts/setup, or apt install mmdebstrap, or `rockroll image build --from ROOTFS.tar`"
        )
    family, release = suite()
    say(f"making {family} {release} with mmdebstrap: {' '.join(PACKAGES)}")
    target.parent.mkdir(mode=0o700, exist_ok=True)
    making = target.with_suffix(".new")
    options = [
        "--quiet",
        f"--mode={'root' if os.getuid() == 0 else 'unshare'}",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--customize-hook=chroot \"$1\" sh -c '{FINISH}'",
        f"--customize-hook={FORGET}",
    ]
    if family == "ubuntu":
        options.append("--components=main,universe")
    try:
        with making.open("wb") as out:
            refused = await run(program, *options, release, "-", stdout=out)
        if refused:
            raise HostError(f"mmdebstrap could not make the image: {refused}; check the network and apt's sources")
        making.replace(target)
    finally:
        making.unlink(missing_ok=True)


def suite() -> tuple[str, str]:
    """Family and code name of the host if it is Debian or Ubuntu (its mirrors and keys are there), else Debian 12."""
    said = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    family, release = said.get("ID", "").strip('"'), said.get("VERSION_CODENAME", "").strip('"')
    return (family, release) if family in ("debian", "ubuntu") and release else ("debian", "bookworm")


async def run(*argv: str, stdout: Any = None, timeout_s: float = BUILD_TIMEOUT_S) -> str | None:
    """Runs a program of the host; None when it succeeded, else the end of what it said."""
    # /var/tmp: some hundred MB, and the mapped users of mmdebstrap's unshare mode have to reach it
    environment = {**runtime.environment(), "TMPDIR": "/var/tmp"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=stdout or log, stderr=log, env=environment
        )
        try:
            code = await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            return f"not done within {timeout_s:g} s"
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    if code == 0:
        return None
    telling = [line for line in lines if line.startswith(("E:", "Error"))] or lines
    return telling[-1] if telling else f"exit code {code}"


@asynccontextmanager
async def locked(name: str) -> AsyncIterator[None]:
    """One maker at a time in this home, among those that name this lock."""
    directory = home.home() / "images"
    directory.mkdir(mode=0o700, exist_ok=True)
    with open(directory / name, "w") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield
