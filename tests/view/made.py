"""Runs that were never trained: records as a run writes them, with a real tokenizer."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import msgspec

from rockroll.observe.record import EpisodeLog
from rockroll.rollout.sample import AgentRecord, Episode, Sample, SampledTurn, TurnRecord
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.tiny import tokenizer as tiny

HOSTILE = "</pre></script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>\"'>{{ 7 * 7 }}"
"""What a command may print, a model may say and a task may be called."""
TASKS = (
    ("Take the last word in fyc and save it as wth.", "cat fyc", "ok: fern ginger", "echo ginger > wth"),
    ("Copy the file sun to moon.", "ls -l", "sun", "cp sun moon"),
    ("Remove the file old.", "ls", "old new", "rm old"),
)


def model(folder: Path) -> Path:
    """A model's folder with the tiny model's tokenizer and no weights."""
    folder.mkdir(parents=True)
    tiny.save(folder, context_length=4096)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    (folder / "model.safetensors").touch()
    return folder


def episode(
    words: ChatTokenizer, id: str, group: int, index: int, said: list[str], reward: float | None, *, version: int = 0,
    **fields: Any,
) -> dict[str, Any]:  # fmt: skip
    """said: by turns the user's words and the model's."""
    draw = random.Random(id)
    ids: list[int] = []
    mask: list[bool] = []
    turns: list[SampledTurn] = []
    for i, text in enumerate(said):
        new = words.encode(f"{text}<|end|>" if i % 2 else f"<|user|>{text}<|end|><|assistant|>")
        if i % 2:
            turns.append(SampledTurn(i // 2, len(ids), len(ids) + len(new), "0"))
        ids += new
        mask += [bool(i % 2)] * len(new)
    logprobs = [-(draw.expovariate(3) ** 2) if on else 0.0 for on in mask]
    versions = [version + (i > len(ids) * 2 // 3) if on else -1 for i, on in enumerate(mask)]
    made = {
        "id": id,
        "task": "rockroll:shell",
        "seed": 1000 + group,
        "group": group,
        "index": index,
        "outcome": "ok",
        "cause": None,
        "reward": reward,
        "samples": [Sample(ids, mask, logprobs, versions, turns)],
        "turns": len(turns),
        "duration_s": round(draw.uniform(0.3, 2), 2),
        "record": [TurnRecord(turn.start, turn.end - turn.start) for turn in turns],
        "began_at": 1795417700.0 + group,
        "sandbox": "aa203451c6a9",
        "node": "big",
    } | fields
    record = msgspec.structs.asdict(Episode(**made))
    if made["outcome"] == "ok" and reward is not None:
        record["advantages"] = [[(turn.start, turn.end, round(2.4 * reward - 0.9, 3)) for turn in turns]]
    return record


def of_two(words: ChatTokenizer, record: dict[str, Any]) -> dict[str, Any]:
    """The same episode, worked on by two agents: the second said other things, and broke."""
    other = episode(words, record["id"], record["group"], record["index"], [TASKS[1][0], "ls"], 0.0)
    ask, solve = ("asker", "solver")
    named = [msgspec.structs.replace(each, agent=ask) for each in record["samples"]]
    calls = [msgspec.structs.replace(each, agent=ask) for each in record["record"]]
    calls += [msgspec.structs.replace(each, agent=solve) for each in other["record"]]
    said = "the agent ended by itself with exit code 3: it said nothing"
    agents = [
        AgentRecord(ask, "finished", 1.0, turns=record["turns"], sandbox="aa203451c6a9"),
        AgentRecord(solve, "agent_crashed", 0.0, turns=1, sandbox="bb203451c6a9", detail=said, log=HOSTILE),
    ]
    samples = [*named, *(msgspec.structs.replace(each, agent=solve) for each in other["samples"])]
    advantages = [*record.get("advantages", []), *other["advantages"]]
    return record | {"samples": samples, "record": calls, "agents": agents, "advantages": advantages, "reward": 0.5}


def run(
    path: Path, model: Path, *, steps: int = 12, seed: int = 1, task: str = "rockroll:shell", team: bool = False
) -> Path:
    """A run that learned something, with some broken episodes. team: two agents worked on its last step's first."""
    path.mkdir(parents=True)
    words = ChatTokenizer(model)
    (path / "recipe.yaml").write_text(
        f"name: {path.name[:20]!r}\nsteps: {steps}\ntask:\n  env: {json.dumps(task)}\nmodel: {model}\n"
    )
    (path / "metrics.jsonl").write_text("")
    log, draw = EpisodeLog(path), random.Random(seed)
    add(path, 0, draw, steps)
    log.write("eval", 0, [episode(words, f"eval-{i}-0-0-{i}", i, 0, [TASKS[i][0], "done"], 0.0) for i in range(3)])
    for step in range(1, steps + 1):
        add(path, step, draw, steps)
        records = []
        for group in range(4):
            goal, look, shown, act = TASKS[(step + group) % 3]
            for index in range(8):
                won = draw.random() < 0.15 + 0.75 * step / steps
                said = [goal, look, shown, act, "ok", "done"] if won else [goal, look, shown, "done"]
                number = (step * 4 + group) * 8 + index
                id = f"train-{step * 4 + group}-{index}-0-{number}"
                records.append(episode(words, id, step * 4 + group, index, said, float(won), version=step))
        if team and step == steps:
            records[0] = of_two(words, records[0])
        log.write("train", step, records)
    broken = episode(words, f"train-{steps * 4}-3-0-9", steps * 4, 3, [TASKS[0][0], "cat fyc"], None)
    broken |= {"outcome": "infra_error", "cause": "infra", "detail": "sandbox aa203451c6a9 died under its agent"}
    log.add("discarded", steps, broken)
    log.add("discarded", steps, broken | {"id": "train-7-7-1-8", "outcome": "cancelled", "cause": None, "detail": ""})
    return path


def add(path: Path, step: int, draw: random.Random, steps: int) -> None:
    """One row of metrics.jsonl."""
    rate = 0.2 + 0.7 / (1 + math.exp(-8 * (step / steps - 0.5)))
    row: dict[str, float] = {"step": step, "version": step, "canary/max_abs_dlogp": 1e-6 * draw.random()}
    if step % 4 == 0:
        row |= {"eval/pass_rate": rate, "eval/ci95_low": max(0, rate - 0.09), "eval/ci95_high": min(1, rate + 0.08)}
    if step:
        row |= {
            "reward/mean": min(1, max(0, rate + draw.gauss(0, 0.08))),
            "loss/policy": draw.gauss(-0.05, 0.03),
            "loss/grad_norm": abs(draw.gauss(0.4, 0.1)),
            "staleness/max": float(draw.randint(0, 1)),
            "tokens/trained": float(draw.randint(1300, 1600)),
            "time/step_s": draw.uniform(8, 11),
            "time/rollout_s": draw.uniform(6, 8),
        }
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def hostile(path: Path, model: Path) -> Path:
    """A run in which every text that anybody else chose tries to be a script."""
    run(path, model, steps=1, task=HOSTILE)
    words, log = ChatTokenizer(model), EpisodeLog(path)
    said = [HOSTILE, HOSTILE, f"\x1b[31m\u202e{HOSTILE}", f"<tool_call>{HOSTILE}</tool_call>"]
    one = episode(words, HOSTILE, 4, 0, said, 1.0, task=HOSTILE, detail=HOSTILE, sandbox=HOSTILE, node=HOSTILE)
    one |= {"log": f"\x1b[31m\u202e{HOSTILE}"}
    one |= {HOSTILE: HOSTILE, "agent_log": HOSTILE, "outcome": "infra_error", "cause": HOSTILE}
    one["agents"] = [{"name": HOSTILE, "happened": HOSTILE, "reward": 0.5, "detail": HOSTILE, "log": HOSTILE}, {}]
    one["samples"] = [msgspec.structs.replace(each, agent=HOSTILE) for each in one["samples"]]
    one["record"] = [
        {"agent": HOSTILE, "prompt_tokens": 3, "sampled": 4, "asked": {HOSTILE: HOSTILE}, "incomplete": HOSTILE}
    ]
    log.write("train", 2, [one])
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, f"{HOSTILE}/x": 0.5, HOSTILE: 1.0}) + "\n")
    (path / "rockroll.log").write_text(f"2026-01-01 00:00:00,000 ERROR x: {HOSTILE}\n")
    (path / "running").mkdir()
    at_work = {"id": HOSTILE, "task": HOSTILE, "sandbox": HOSTILE, "node": HOSTILE, "began_at": 1.0}
    (path / "running" / "x.json").write_text(json.dumps(at_work))
    return path
