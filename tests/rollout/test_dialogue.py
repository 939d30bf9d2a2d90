"""Dialogue: what a call may wish, how an answer streams, and what is never trained."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rockroll import rpc
from rockroll.engine.api import GenerateRequest, Generation, OnTokens, Piece
from rockroll.errors import EngineError, ModelServiceError, RockrollError
from rockroll.model_service.relay import Relay
from rockroll.model_service.wire import CHAT_STREAM, ChatReply, ChatRequest, Delta, Message, Tool, ToolCall
from rockroll.rollout.answering import Answering
from rockroll.rollout.completeness import Completeness
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.sample import Episode, TurnRecord
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.rollout.wishes import Sampling

from .engines import Policy, ScriptedEngine
from .families import chat_tokenizer

SAID: Any = Delta | ChatReply
LOOK = Tool(name="look", parameters={"type": "object", "properties": {"path": {"type": "string"}}})
RUN = Tool(name="run")
CALL = '<tool_call>\n{"name": "look", "arguments": {"path": "x"}}\n</tool_call>'


def dialogue(policy: Policy, family: str = "qwen2.5", engine: ScriptedEngine | None = None) -> tuple[Dialogue, Any]:
    tokenizer = chat_tokenizer(family)
    engine = engine or ScriptedEngine(tokenizer, policy)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=256, max_turns=100, context_length=2048)
    return Dialogue("e", tokenizer, engine, sampling, seed=5), engine


def request(*messages: Message, **wishes: Any) -> ChatRequest:
    return ChatRequest(
        id="r", sandbox="s", token="e", model="m", messages=list(messages) or [Message("user", "a")], **wishes
    )


async def stream(talk: Dialogue, asked: ChatRequest) -> tuple[ChatReply, list[Delta]]:
    told: list[Delta] = []
    reply = await talk.chat(asked, told.append)
    assert "".join(delta.text for delta in told) == reply.text
    assert "".join(delta.reasoning for delta in told) == reply.reasoning
    calls = [ToolCall(id=d.tool_id, name=d.name, arguments=d.arguments) for d in told if d.tool is not None]
    assert calls == reply.tool_calls
    return reply, told


async def test_an_answer_streams_its_thoughts_its_text_and_its_calls() -> None:
    text = f"<think>\nhm, öh\n</think>\n\nI look — 👀.\n{CALL}"
    talk, _ = dialogue(lambda *_: text, "qwen3")
    reply, told = await stream(talk, request(tools=[LOOK]))
    assert (reply.reasoning, reply.text, reply.finish_reason) == ("hm, öh", "I look — 👀.", "tool_calls")
    assert [(c.name, c.arguments) for c in reply.tool_calls] == [("look", '{"path": "x"}')]
    assert len(told) > 4, "it came as it was sampled"
    assert not any("\ufffd" in delta.text for delta in told), "a character whose bytes come apart is told whole"


async def test_a_conversation_with_tools_goes_on_from_what_was_sampled() -> None:
    answers = iter([CALL, "It says y."])
    talk, engine = dialogue(lambda *_: next(answers))
    reply = await talk.chat(request(tools=[LOOK]))
    (call,) = reply.tool_calls
    again = ToolCall(id=call.id, name="look", arguments='{"path":"x"}')
    back = [Message("user", "a"), Message("assistant", "", "", [again]), Message("tool", "y", tool_call_id=call.id)]
    second = await talk.chat(request(*back, tools=[LOOK]))
    assert (second.text, second.finish_reason) == ("It says y.", "stop")
    assert second.cached_tokens == reply.prompt_tokens + reply.completion_tokens
    (sample,) = talk.transcript.samples()
    assert sample.ids[: second.cached_tokens] == engine.requests[0].prompt_ids + engine.answers[0].token_ids


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_streamed_text_is_the_text_of_the_ids_whole_or_broken(data: st.DataObject) -> None:
    """Any ids, half characters among them, in any pieces, with any stop strings: deltas are whole characters, and where
    the answer ends does not depend on the pieces."""
    tokenizer = chat_tokenizer("qwen2.5")
    text = data.draw(st.text("aé€😀x", max_size=12))
    ids = tokenizer.encode(text) + data.draw(st.lists(st.integers(5, tokenizer.vocab_size - 1), max_size=6))
    stop = data.draw(st.lists(st.text("aé€x", min_size=1, max_size=2), max_size=2))
    cuts = sorted({0, len(ids), *data.draw(st.lists(st.integers(0, len(ids)), max_size=6))})

    def read(cuts: list[int]) -> tuple[list[int], str, str | None]:
        told: list[Delta] = []
        reading = Answering(tokenizer, lambda call: "", stop=stop, on_delta=told.append)
        for a, b in pairwise(cuts):
            reading.take(Piece(start=a, token_ids=ids[a:b], logprobs=[-1.0] * (b - a), versions=[0] * (b - a)))
            if reading.over:
                break
        answer = reading.result(None)
        assert "".join(delta.text for delta in told) == answer.content
        return list(answer.ids), answer.content, answer.stop

    kept, content, ended = read(cuts)
    assert (kept, content, ended) == read([0, len(ids)] if ids else [0])
    whole = tokenizer.plain(kept)
    assert whole.startswith(content) and (ended is None or whole[len(content) :].startswith(ended))
    if ended is None:
        assert kept == ids and content == tokenizer.plain(ids)
    else:
        assert ended not in tokenizer.plain(kept[:-1]), "nothing is kept after the token that completed it"


async def test_a_stop_string_cuts_the_text_and_not_the_sampled_token() -> None:
    tokenizer = chat_tokenizer("qwen2.5")
    (one,) = tokenizer.encode(" answer")
    talk, _ = dialogue(lambda *_: [*tokenizer.encode("look at the"), one, *tokenizer.encode(" more") * 50])
    reply = await talk.chat(request(stop=["ans"]))
    assert (reply.text, reply.stop, reply.finish_reason) == ("look at the ", "ans", "stop")
    (sample,) = talk.transcript.samples()
    assert sample.ids[-1] == one and sample.mask[-1], "the token that completed it was sampled: it is trained"
    assert reply.completion_tokens == sample.sampled
    back = [Message("user", "a"), Message("assistant", "look at the "), Message("user", "b")]
    second = talk.transcript.prompt(back)
    assert second.parent is talk.transcript.turns[0]
    assert second.ids[second.cached] == tokenizer.stop_ids[0], "closed by a stop token that nobody sampled"


@pytest.mark.parametrize(
    ("family", "rest"), [("qwen2.5", ' {"path": "x"}}\n</tool_call>'), ("llama-3.1", ' {"path": "x"}}')]
)
async def test_a_tool_that_must_be_called_is_begun_in_the_prompt(family: str, rest: str) -> None:
    talk, engine = dialogue(lambda *_: rest, family)
    reply, _ = await stream(talk, request(tools=[LOOK, RUN], tool_choice="=look"))
    assert [(c.name, c.arguments) for c in reply.tool_calls] == [("look", '{"path": "x"}')]
    (sample,) = talk.transcript.samples()
    assert talk._tokenizer.plain([i for i, m in zip(sample.ids, sample.mask, strict=True) if m][:-1]) == rest
    assert talk._tokenizer.plain(engine.requests[0].prompt_ids).endswith(f'"{LOOK.name}", "{_member(family)}":')


def _member(family: str) -> str:
    return "parameters" if family.startswith("llama") else "arguments"


async def test_no_tool_choice_leaves_text_and_one_call_at_a_time_ends_after_it() -> None:
    talk, _ = dialogue(lambda *_: CALL + "\n" + CALL)
    assert (await talk.chat(request(tools=[LOOK], tool_choice="none"))).text == CALL + "\n" + CALL
    reply = await talk.chat(request(tools=[LOOK], parallel_tool_calls=False))
    assert len(reply.tool_calls) == 1 and reply.finish_reason == "tool_calls"
    assert len((await talk.chat(request(tools=[LOOK]))).tool_calls) == 2


@pytest.mark.parametrize(
    ("family", "wishes", "says"),
    [
        ("gemma-2", {"tools": [LOOK]}, "no tool calls; send the request without tools"),
        ("qwen2.5", {"tools": [LOOK], "tool_choice": "=run"}, r"got run of \['look'\]"),
        ("qwen2.5", {"tool_choice": "required"}, r"got any of \[\]"),
    ],
)
async def test_what_the_template_cannot_say_is_refused(family: str, wishes: dict[str, Any], says: str) -> None:
    talk, _ = dialogue(lambda *_: "x", family)
    with pytest.raises(ModelServiceError, match=says) as refused:
        await talk.chat(request(**wishes))
    assert refused.value.fields["status"] == 400


async def test_the_run_s_temperature_is_used_and_the_record_says_what_was_asked() -> None:
    talk, engine = dialogue(lambda *_: "x")
    await talk.chat(request(temperature=0.2, top_p=0.5, max_tokens=7))
    await talk.chat(request())
    assert [(r.temperature, r.top_p, r.max_tokens) for r in engine.requests] == [(1.0, 1.0, 7), (1.0, 1.0, 256)]
    first, second = talk.record
    assert first.asked == {"temperature": 0.2, "top_p": 0.5, "max_tokens": 7}
    assert first.used == {"temperature": 1.0, "top_p": 1.0}
    assert second.asked == second.used == {}


async def test_a_client_s_seed_names_its_draws_within_its_episode() -> None:
    seeds = []
    for talk, engine in (dialogue(lambda *_: "x"), dialogue(lambda *_: "x")):
        for wishes in ({"seed": 1}, {"seed": 1}, {"seed": 1, "index": 1}, {"seed": 2}, {}):
            await talk.chat(request(**wishes))
        seeds.append([r.seed for r in engine.requests])
    assert seeds[0] == seeds[1] and seeds[0][0] == seeds[0][1] and len(set(seeds[0])) == 4


async def test_log_probs_come_with_their_tokens() -> None:
    talk, engine = dialogue(lambda *_: "é look")
    reply, told = await stream(talk, request(logprobs=0))
    assert reply.logprobs is not None and [x for d in told for x in d.logprobs] == reply.logprobs
    assert b"".join(bytes(x.bytes) for x in reply.logprobs).decode() == "é look"
    assert [x.logprob for x in reply.logprobs] == engine.answers[0].logprobs[:-1]
    assert (await talk.chat(request())).logprobs is None


async def test_text_to_go_on_from_is_sent_as_it_stands() -> None:
    talk, engine = dialogue(lambda *_: "<tool_call> x")
    reply = await talk.chat(request(prompt="Once upon <|im_start|>"))
    assert engine.requests[0].prompt_ids == talk._tokenizer.encode("Once upon <|im_start|>")
    assert reply.text == "<tool_call> x"
    (sample,) = talk.transcript.samples()
    assert sample.sampled == reply.completion_tokens


async def test_the_tokens_of_a_request_can_be_counted_without_an_answer() -> None:
    talk, engine = dialogue(lambda *_: "x")
    counted = talk.count(request(tools=[LOOK]))
    assert not engine.requests and talk.transcript.turns == []
    assert counted == (await talk.chat(request(tools=[LOOK]))).prompt_tokens


async def test_over_the_reverse_channel_an_answer_streams_and_who_leaves_is_noticed(tmp_path: Path) -> None:
    engine = Halting(chat_tokenizer("qwen2.5"))
    talk, _ = dialogue(lambda *_: "", engine=engine)
    address = f"ipc://{tmp_path}/relay"
    async with Relay(address, talk.chat, ["policy"]):
        client = await rpc.connect(address)
        async with aclosing(client.stream(CHAT_STREAM, request(), type=SAID)) as stream:
            assert (await anext(stream)).text == "one"
        while not talk.record:  # the cancel is a message: it comes when it comes
            await asyncio.sleep(0.01)
        assert talk.record[0].incomplete and talk.record[0].sampled == 2
        said = [item async for item in client.stream(CHAT_STREAM, request(), type=SAID)]
        await client.close()
    assert len(said) > 2 and isinstance(said[-1], ChatReply)
    assert "".join(delta.text for delta in said[:-1]) == said[-1].text == "one two three"


# ---- incomplete is loud ----------------------------------------------------------------------------------------


class Halting(ScriptedEngine):
    """Tells two tokens, then waits."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        super().__init__(tokenizer, lambda *_: "one two three")
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        if on_tokens is not None and not self.told.done():
            on_tokens(Piece(start=0, token_ids=self.tokenizer.encode("one"), logprobs=[-1.0] * 2, versions=[0] * 2))
            self.told.set_result(None)
            await asyncio.get_running_loop().create_future()
        return await super().generate(request, on_tokens)


async def test_a_client_that_leaves_in_the_middle_makes_an_incomplete_turn() -> None:
    talk, engine = dialogue(lambda *_: "", engine=Halting(chat_tokenizer("qwen2.5")))
    call = asyncio.ensure_future(talk.chat(request(), lambda delta: None))
    await engine.told
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert [(r.sampled, r.incomplete) for r in talk.record] == [(2, "the client left in the middle of the answer")]
    assert talk.transcript.samples() == [] and talk.turns == 0
    await talk.chat(request())
    talk.killed()
    assert talk.record[0].incomplete, "it called again: it had given this one up by itself"
    assert len(talk.transcript.samples()) == 1


async def test_a_call_that_ended_with_its_agent_was_not_given_up() -> None:
    talk, engine = dialogue(lambda *_: "", engine=Halting(chat_tokenizer("qwen2.5")))
    call = asyncio.ensure_future(talk.chat(request(), lambda delta: None))
    await engine.told
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    talk.killed()
    assert [(r.finish_reason, r.incomplete) for r in talk.record] == [("killed", None)]
    assert talk.transcript.samples() == []


# ---- weights change under way ------------------------------------------------------------------------------------


class Changing(ScriptedEngine):
    """New weights come after the first two tokens of an answer."""

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        assert request.anew
        void = [0] * 2
        if on_tokens is not None:
            on_tokens(Piece(start=0, token_ids=self.tokenizer.encode("zz"), logprobs=[-9.0] * 2, versions=void))
            await asyncio.sleep(0)
        return msgspec.structs.replace(await super().generate(request, on_tokens), thrown=2)


@pytest.mark.parametrize("streams", [False, True])
async def test_an_answer_that_begins_anew_is_heard_once_and_what_was_thrown_is_counted(streams: bool) -> None:
    tokenizer = chat_tokenizer("qwen2.5")
    assert len(tokenizer.encode("zz")) == 2
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=256, max_turns=100, context_length=2048, anew=True)
    talk = Dialogue("e", tokenizer, Changing(tokenizer, lambda *_: f"I look.\n{CALL}"), sampling, seed=5)
    asked = request(tools=[LOOK])
    reply, told = await stream(talk, asked) if streams else (await talk.chat(asked), [])
    assert reply.text == "I look." and [call.name for call in reply.tool_calls] == ["look"]
    assert bool(told) == streams, "it is told when it is whole"
    (sample,) = talk.transcript.samples()
    assert 0 not in sample.versions and sample.sampled == reply.completion_tokens
    assert [turn.thrown for turn in talk.record] == [2]
    assert talk.spent_tokens == sample.sampled + 2


@pytest.mark.parametrize("how", ["a piece is lost", "the engine dies", "other tokens in the end"])
async def test_an_answer_that_is_not_whole_is_never_trained(how: str) -> None:
    class Faulty(ScriptedEngine):
        async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
            assert on_tokens is not None

            def tell(piece: Piece) -> None:
                if not (how == "a piece is lost" and piece.start == 2):
                    on_tokens(piece)

            whole = await super().generate(request, tell)
            if how == "the engine dies":
                raise EngineError("out of memory")
            if how == "other tokens in the end":
                return Generation(token_ids=[7, *whole.token_ids[1:]], logprobs=whole.logprobs, versions=whole.versions,
                                  finish_reason="stop")  # fmt: skip
            return whole

    talk, _ = dialogue(lambda *_: "", engine=Faulty(chat_tokenizer("qwen2.5"), lambda *_: "one two three"))
    with pytest.raises(ModelServiceError, match="the engine failed"):
        await talk.chat(request(), lambda delta: None)
    (turn,) = talk.record
    assert turn.incomplete and turn.incomplete.startswith("the engine failed: ")
    assert talk.transcript.samples() == [] and isinstance(talk.over.result(), EngineError)


def test_too_many_incomplete_turns_stop_the_run_with_the_reason() -> None:
    def episode(incomplete: int, calls: int = 10) -> Episode:
        record = [TurnRecord(1, 1, incomplete="a piece was lost" if i < incomplete else None) for i in range(calls)]
        return Episode("e", "t", 7, 0, 0, "ok", None, 1.0, [], calls, 0.1, record=record)

    complete = Completeness(0.1, window=20)
    for _ in range(100):
        complete.check(episode(1))
    complete = Completeness(0.1, window=20)
    for _ in range(4):
        complete.check(episode(2))
    with pytest.raises(RockrollError, match=r"9 of the last 50 model calls.*share of 0.1; 9 times: a piece was lost"):
        complete.check(episode(1))
