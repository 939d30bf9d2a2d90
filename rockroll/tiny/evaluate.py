"""The pass rate of a model on `rockroll:shell`, measured without a sandbox.

In: a model, its tokenizer, seeds, a temperature. Out: how many situations of each kind it solved. Its commands are
carried out by env/shell_interpreter.py, never by this host. Leaves the real measure, in sandboxes, to `rockroll eval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from rockroll.agent import shell_agent
from rockroll.env import shell_interpreter as interpreter
from rockroll.env.api import Split
from rockroll.env.shell import Goal, ShellTask
from rockroll.tiny.tokenizer import END, PAD

ANSWER_TOKENS = 24
"""As in recipes/quickstart.yaml: no command of this task needs more than 12."""


@dataclass
class Attempt:
    """One episode: the conversation so far as ids, and the files as the commands left them."""

    goal: Goal
    ids: list[int]
    files: dict[str, bytes]
    over: bool = False
    solved: bool = False


@dataclass
class PassRate:
    """Solved and tried, by kind of goal."""

    solved: dict[str, int] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)

    @property
    def overall(self) -> float:
        return sum(self.solved.values()) / sum(self.tried.values())

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {self.solved[kind] / n:.2f}" for kind, n in sorted(self.tried.items()))
        return f"{self.overall:.3f} of {sum(self.tried.values())} ({kinds})"


def evaluate(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    seeds: Sequence[int],
    *,
    temperature: float,
    split: Split = "eval",
    sampling_seed: int = 0,
) -> PassRate:
    """Play the situations of `seeds` side by side; temperature 0 is greedy."""
    task, draw = ShellTask(), torch.Generator().manual_seed(sampling_seed)
    attempts: list[Attempt] = []
    for seed in seeds:
        situation = task.situation(seed, split)
        ids = tokenizer.encode(f"<|user|>{situation.instruction}<|end|><|assistant|>", add_special_tokens=False).ids
        attempts.append(Attempt(goal=situation.secret, ids=ids, files=dict(situation.files)))
    for _ in range(shell_agent.TURNS):
        playing = [attempt for attempt in attempts if not attempt.over]
        if not playing:
            break
        answers = generate(model, tokenizer, [attempt.ids for attempt in playing], temperature, draw)
        for attempt, answer in zip(playing, answers, strict=True):
            _take(attempt, answer, tokenizer)
    result = PassRate()
    for attempt in attempts:
        kind = attempt.goal.kind
        result.tried[kind] = result.tried.get(kind, 0) + 1
        result.solved[kind] = result.solved.get(kind, 0) + (attempt.files == attempt.goal.expected)
    return result


def _take(attempt: Attempt, answer: list[int], tokenizer: Tokenizer) -> None:
    """Carry out what the model answered, as the agent program does."""
    end = tokenizer.token_to_id(END)
    spoken = answer[:-1] if answer[-1] == end else answer
    command = shell_agent.proposed(tokenizer.decode(spoken, skip_special_tokens=False))
    result = interpreter.run(attempt.files, command) if command else None
    if result is None:
        attempt.over = True
        if command:
            attempt.files = {}  # not understood: never counted as solved, since every goal leaves a file
        return
    attempt.files, output, code = result
    closing = f"<|user|>{shell_agent.show(output, code)}<|end|><|assistant|>"
    attempt.ids += [*spoken, end, *tokenizer.encode(closing, add_special_tokens=False).ids]


@torch.no_grad()
def generate(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: list[list[int]], temperature: float, draw: torch.Generator
) -> list[list[int]]:
    """One answer to each prompt, its end of turn included; at most ANSWER_TOKENS tokens."""
    pad, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    answers: list[list[int]] = [[] for _ in prompts]
    cache, ended = None, torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(ANSWER_TOKENS):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits = out.past_key_values, out.logits[:, -1].float()
        if temperature:
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw)[:, 0]
        else:
            chosen = logits.argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            if not ended[row]:
                answers[row].append(token)
        ended |= chosen == end
        if bool(ended.all()):
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=mask.dtype)], dim=1)
    return answers
