"""Episodes of several agents: real programs in real sandboxes, real HTTP, real ZeroMQ; the policy is Python."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from rockroll import Sandbox, SandboxConfig, home, rpc
from rockroll.agent.config import BudgetConfig
from rockroll.agent.team import MemberConfig, TeamConfig, box_key
from rockroll.engine.api import GenerateRequest
from rockroll.env.api import Part, Situation, Split
from rockroll.rollout.config import RedundancyConfig, RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.sample import AgentRecord, Episode, Event
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.sandbox.pool import Pool

from .agents import ASK
from .engines import ScriptedEngine

PROGRAM = (
    ASK.replace(b"goal =", b"me = os.environ['ROCKROLL_AGENT']\ngoal =").partition(b'if mode == "work"')[0]
    + b"""
if mode == "say":                   # each into its own file, beside where its endpoint is and how often it was refused
    answers = [ask([goal, {"role": "user", "content": str(i)}]) for i in range(2)]
    said = "".join(one[1] if isinstance(one, tuple) else one["content"] for one in answers)
    open(me, "w").write(os.environ["OPENAI_BASE_URL"] + " " + said)
elif mode == "read":
    open("read", "w").write(open("note").read() + ask([goal])["content"])
elif mode == "crash":
    ask([goal])
    raise SystemExit(3)
elif mode == "hang":
    ask([goal])
    time.sleep(1000)
elif mode == "note":
    open("note", "w").write(ask([goal])["content"])
"""
)


class Together:
    """Looks at what each agent left; the reward of each is 1 where its file is there."""

    left: dict[str, str] = {}

    def situation(self, seed: int, split: Split) -> Situation:
        files = {"/opt/ask.py": PROGRAM, "given": b"to all"}
        return Situation(
            instruction="the goal", files=files, parts={"b": Part(instruction="b's own", files={"x": b"y"})}
        )

    async def grade(self, sandbox: Sandbox, situation: Situation) -> float:
        raise AssertionError("a team is graded by grade_team")

    async def grade_team(self, sandboxes: Mapping[str, Sandbox], situation: Situation) -> dict[str, float]:
        Together.left = {}
        for name, sandbox in sandboxes.items():
            alive = await sandbox.execute(["pgrep", "-fc", "ask.py"])
            assert alive.stdout == b"0\n", "an agent's process is alive while the grade is taken"
            for entry in await sandbox.list_files("/work"):
                Together.left[f"{name}:{entry.name}"] = (await sandbox.read_file(f"/work/{entry.name}")).decode()
        return {"a": float("main:a" in self.left or "main:note" in self.left), "b": 0.5}


TASK = f"{__name__}:Together"


@pytest.fixture
async def pools(node: rpc.Client) -> AsyncIterator[dict[str, Pool]]:
    box = SandboxConfig(memory="64m", pids=64)
    proxied = SandboxConfig(memory="64m", pids=64, network=["example.com"])  # its proxy has a port in the box, too
    async with Pool(proxied, 2) as main, Pool(box, 2) as other:
        yield {TASK: main, box_key(TASK, "other"): other}


def rollout(
    tokenizer: ChatTokenizer, pools: Mapping[str, Pool], modes: Mapping[str, Any], team: Mapping[str, Any], **more: Any
) -> tuple[Rollout, ScriptedEngine]:
    engine = ScriptedEngine(tokenizer, lambda prompt, _: "for b " if "b's own" in prompt else "for a ")
    agents = {
        name: MemberConfig(**{"command": f"python3 /opt/ask.py {mode}", "timeout": 20, **each})
        for name, (mode, each) in modes.items()
    }
    task = TaskConfig(env=TASK, max_turns=3, failure_reward=-1.0)
    config = RolloutConfig(**{"concurrency": 1} | more.pop("config", {}))
    address = f"ipc://{home.runtime_dir() / 'relay-test'}"
    crew = TeamConfig(agents=agents, **team)
    return Rollout(config, engine, pools, task, crew, tokenizer, address=address, **more), engine


async def one(run: Rollout) -> tuple[Episode, dict[str, AgentRecord]]:
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    (episode,) = group.episodes
    return episode, {each.name: each for each in episode.agents}


async def test_two_agents_of_one_sandbox_have_their_own_endpoint_budget_and_conversation(
    tokenizer: ChatTokenizer, pools: dict[str, Pool]
) -> None:
    modes = {"a": ("say", {}), "b": ("say", {"budget": BudgetConfig(calls=1), "role": "You are b."})}
    run, engine = rollout(tokenizer, pools, modes, {})
    episode, agents = await one(run)
    left = Together.left
    assert left["main:a"] == "http://127.0.0.1:41414/v1 for a for a "
    assert left["main:b"] == "http://127.0.0.1:41420/v1 for b rate_limit_exceeded", "its budget is its own"
    assert left["main:given"] == "to all" and left["main:x"] == "y"
    assert [sample.agent for sample in episode.samples] == ["a", "a", "b"]
    assert "You are b.\n\nb's own" in tokenizer.decode(episode.samples[2].ids)
    assert [call.agent for call in episode.record] == ["a", "a", "b"]
    assert (episode.outcome, episode.happened, episode.turns) == ("truncated", "budget", 3)
    assert {name: (each.happened, each.reward, each.turns) for name, each in agents.items()} == {
        "a": ("finished", 1.0, 2),
        "b": ("budget", 0.5, 1),
    }
    assert episode.reward == 0.75 and episode.earned_by("b") == 0.5
    assert agents["a"].sandbox == agents["b"].sandbox == episode.sandbox
    assert len({request.seed for request in engine.requests}) == 3, "no draw is another agent's"


async def test_in_turn_and_in_sandboxes_of_their_own_one_goes_on_from_what_the_other_left(
    tokenizer: ChatTokenizer, pools: dict[str, Pool]
) -> None:
    modes = {"a": ("note", {}), "b": ("read", {"sandbox": "other", "takes": {"a": ("/work/", "/work/missing")}})}
    run, _ = rollout(tokenizer, pools, modes, {"order": "in_turn", "sandboxes": {"other": SandboxConfig()}})
    episode, agents = await one(run)
    assert (episode.outcome, episode.detail) == ("ok", "")
    assert Together.left["main:note"] == "for a " and Together.left["other:read"] == "for a for b "
    assert "main:x" not in Together.left and Together.left["other:x"] == "y"
    assert agents["a"].sandbox != agents["b"].sandbox


@pytest.mark.parametrize(
    ("modes", "team", "happened", "reward", "fates"),
    [
        # the one whose end is the episode's: the other is stopped, and graded with it
        ({"a": "note", "b": "hang"}, {"ends": "a"}, "finished", 0.75, ("finished", "stopped")),
        # a crash is the agent's own outcome: it ends the episode, or the other goes on
        pytest.param(
            *({"a": "hang", "b": "crash"}, {}, "agent_crashed", 0.25, ("stopped", "agent_crashed")),
            marks=pytest.mark.slow,
        ),
        ({"a": "note", "b": "crash"}, {"on_crash": "go_on"}, "agent_crashed", 0.75, ("finished", "agent_crashed")),
        # its own time is up: it is paid the failure's reward, the other what it earned
        ({"a": "note", "b": "hang"}, {"on_crash": "go_on"}, "finished", 0.0, ("finished", "agent_time")),
        pytest.param(
            *({"a": "note", "b": "hang"}, {"order": "in_turn"}, "agent_time", -1.0, ("finished", "agent_time")),
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_how_it_ends_for_each_and_for_the_episode(
    tokenizer: ChatTokenizer,
    pools: dict[str, Pool],
    modes: dict[str, str],
    team: dict[str, Any],
    happened: str,
    reward: float,
    fates: tuple[str, str],
) -> None:
    limit = {"timeout": 1} if "agent_time" in fates else {}
    run, _ = rollout(tokenizer, pools, {n: (m, limit if m == "hang" else {}) for n, m in modes.items()}, team)
    episode, agents = await one(run)
    assert (episode.happened, episode.reward) == (happened, reward), episode.detail
    assert (agents["a"].happened, agents["b"].happened) == fates
    if happened == "agent_crashed":
        assert episode.cause == "agent" and "b: the agent ended by itself with exit code 3" in episode.detail


async def test_a_sandbox_that_is_lost_ends_the_episode_of_all_and_another_takes_its_place(
    tokenizer: ChatTokenizer, pools: dict[str, Pool]
) -> None:
    ended: list[Episode] = []

    def heard(event: Event) -> None:
        if event.episode is not None:
            ended.append(event.episode)

    modes = {"a": ("note", {}), "b": ("hang", {"sandbox": "other"})}
    team = {"ends": "a", "sandboxes": {"other": SandboxConfig()}, "on_crash": "go_on"}
    run, engine = rollout(tokenizer, pools, modes, team, events=heard)
    other = pools[box_key(TASK, "other")]

    async def lose() -> None:
        (leased,) = (box for box in other._boxes if box not in other._warm)
        await (await Sandbox.attach(leased.id)).delete()

    def gate(request: GenerateRequest) -> asyncio.Future[None] | None:
        if ended:
            return None
        if ".b." in request.id:
            return asyncio.ensure_future(lose())
        return asyncio.get_running_loop().create_future()  # a waits for ever, and is ended with the episode

    engine.gate = gate
    episode, _ = await one(run)
    assert (ended[0].outcome, ended[0].cause, ended[0].reward) == ("infra_error", "infra", None), ended[0].detail
    assert [each.reward for each in ended[0].agents] == [None, None]
    assert episode.outcome == "ok" and episode.index == 0


@pytest.mark.parametrize("own_box", [False, True], ids=["in one sandbox", "in one each"])
async def test_a_redundant_episode_is_cancelled_in_each_of_its_sandboxes_and_the_next_finds_them_as_new(
    tokenizer: ChatTokenizer, pools: dict[str, Pool], own_box: bool
) -> None:
    ended: list[Episode] = []

    def heard(event: Event) -> None:
        if event.episode is not None:
            ended.append(event.episode)

    modes = {"a": ("note", {}), "b": ("note", {"sandbox": "other"} if own_box else {})}
    more = {"config": {"redundancy": RedundancyConfig(episodes=1), "concurrency": 2}, "events": heard}
    team = {"on_crash": "go_on", "sandboxes": {"other": SandboxConfig()} if own_box else {}}
    run, engine = rollout(tokenizer, pools, modes, {**team, "order": "in_turn"}, **more)
    spoke = asyncio.Event()

    def gate(request: GenerateRequest) -> asyncio.Future[Any] | None:
        if not request.id.startswith("train-0-"):
            return None
        if not request.id.startswith("train-0-0-"):
            return asyncio.ensure_future(spoke.wait())  # the second goes on when b of the first asks
        if ".a." in request.id:
            return None
        spoke.set()
        return asyncio.get_running_loop().create_future()  # b of the first waits for ever

    engine.gate = gate
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
        assert [episode.index for episode in group.episodes] == [1] and group.discarded == {"cancelled": 1}
        (cancelled,) = (episode for episode in ended if episode.outcome == "cancelled")
        assert [(each.happened, each.reward) for each in cancelled.agents] == [("finished", None), ("stopped", None)]
        assert group.wasted_tokens == cancelled.sampled > 0
        assert [name.startswith("train-0-0-") and ".b." in name for name in engine.aborted] == [True]
        for pool in pools.values() if own_box else [pools[TASK]]:
            async with pool.lease() as first, pool.lease() as second:
                for box in (first, second):
                    assert (await box.execute(["pgrep", "-fc", "ask.py"])).stdout == b"0\n"
        (group,) = await run.batch(1, groups=1, episodes=1)
        assert group.episodes[0].outcome == "ok" and {each.happened for each in group.episodes[0].agents} == {
            "finished"
        }
