"""The sandbox tests as an ordinary user with subordinate ids: scripts/test-rootless [pytest's arguments].

In: as root, the user `rockroll-test` is made and used; else who calls. Out: pytest's exit code. The tests run where an
ordinary user's node runs, inside `podman unshare`, in a home of their own; what this host cannot enforce for such a
user is allowed, so that the rest is tested.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.sandbox.test_rootless import export_image, interpreter, packages, user

REPOSITORY = Path(__file__).parents[2]
APART = {
    "rootless": "it makes such a user itself",
    "image": "the image here is a part of the real one, to be quickly in the user's store",
    "rock_compat": "the SDK of ROCK is installed for who owns the clone; test_http has the same server",
}
"""Files of tests/sandbox that are not run, and why."""
OTHERS = ("cli/test_debug", "cli/test_pool_cli", "cli/test_sandbox_cli")
PROCESSES = 3000
"""All that this user may have: on cgroup v1 nothing else stops what a test starts too much of."""
PREPARE = """
import subprocess, sys
from rockroll.sandbox.container import runtime
from rockroll.sandbox.config import DEFAULT_IMAGE
from rockroll.sandbox.container.image import RECIPE, RECIPE_LABEL
runtime.detect()
podman = runtime.podman_binary()
changes = ["--change", "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin", "--change", f"LABEL {RECIPE_LABEL}={RECIPE}"]
argv = [podman, "import", "--quiet", *changes, sys.argv[1], DEFAULT_IMAGE]
subprocess.run(argv, env=runtime.environment(), check=True, stdout=subprocess.DEVNULL)
done = subprocess.run([podman, "unshare", sys.executable, "-m", "pytest", *sys.argv[2:]], env=runtime.environment())
# Podman keeps one process for the user's namespace; this ends it, as nothing else of this store runs.
subprocess.run([podman, "system", "migrate"], env=runtime.environment(), check=True)
sys.exit(done.returncode)
"""


def files() -> list[str]:
    """Every file of tests/sandbox but those APART, and what drives sandboxes from outside."""
    here = sorted(Path(__file__).parent.glob("test_*.py"))
    own = [f"tests/sandbox/{path.name}" for path in here if path.stem.removeprefix("test_") not in APART]
    return [*own, *(f"tests/{name}.py" for name in OTHERS)]


def main(arguments: list[str]) -> int:
    """Whole files of tests/sandbox, or what the arguments name."""
    with tempfile.TemporaryDirectory(prefix="rockroll-user-", ignore_cleanup_errors=True) as folder:
        image, home = Path(folder, "image.tar"), Path(folder, "home")
        export_image(image)
        home.mkdir()
        name = user() if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        prefix: list[str] = []
        if os.getuid() == 0:
            prefix = ["runuser", "-u", name, "--"]
            for path in (folder, home):
                shutil.chown(path, name)
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join(packages()),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ROCKROLL_HOME": str(home / "rockroll"),
        }
        named = arguments if any(word.startswith("tests/") for word in arguments) else [*files(), *arguments]
        options = ["-p", "no:cacheprovider", "--basetemp", str(home / "tests"), "-q", *named]
        bounded = ["prlimit", f"--nproc={PROCESSES}:{PROCESSES}"]
        argv = [*prefix, *bounded, "env", "-i", *(f"{key}={value}" for key, value in env.items()), interpreter(prefix)]
        try:
            return subprocess.run([*argv, "-c", PREPARE, str(image), *options], cwd=REPOSITORY, check=False).returncode
        finally:
            within = [] if os.getuid() == 0 else ["podman", "unshare"]
            subprocess.run([*within, "rm", "-rf", "--one-file-system", str(home)], check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
