"""Two hundred turns over real HTTP and ZeroMQ: exact to the last token, each at the cost of what is new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rockroll.model_service.dialects import openai_chat
from rockroll.model_service.gateway import Gateway
from rockroll.model_service.relay import Relay
from rockroll.model_service.shared import Receiver, Sender
from rockroll.model_service.wire import ChatRequest, Message, ToolCall
from rockroll.rollout import messages as forms
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.wishes import Sampling

from ..model_service.conftest import listening
from .engines import ScriptedEngine
from .families import chat_tokenizer, written

TURNS = 200
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}},
}


async def test_two_hundred_turns_are_one_whole_render_and_each_is_parsed_sent_and_kept_from_where_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, turn = chat_tokenizer("qwen2.5"), 0

    def policy(prompt: str, request: Any) -> str:
        call = ToolCall(id="", name="look", arguments=json.dumps({"path": f"src/part_{turn}.py", "n": turn}))
        return written("qwen2.5", "", f"Now part {turn}.", [call])

    engine = ScriptedEngine(tokenizer, policy, 2**20)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=999, max_turns=TURNS, context_length=2**20)
    talk = Dialogue("e", tokenizer, engine, sampling, seed=1)
    parsed, sent = list[int](), list[int]()
    message, shorten = openai_chat._message, Sender.shorten

    def counting(at: str, said: Any) -> Message:
        parsed[-1] += 1
        return message(at, said)

    def noting(sender: Sender, request: ChatRequest) -> ChatRequest:
        short = shorten(sender, request)
        sent.append(len(short.messages))
        return short

    monkeypatch.setattr(openai_chat, "_message", counting)
    monkeypatch.setattr(Sender, "shorten", noting)
    messages: list[Any] = [{"role": "system", "content": "You fix the tests."}, {"role": "user", "content": "Öne — 👀"}]
    gateway, sock, address = Gateway(), listening(), f"ipc://{tmp_path}/relay"
    async with Relay(address, talk.chat, ["m"]) as relay, aiohttp.ClientSession() as http:
        await gateway.attach("box", sock)
        gateway.route("box", address, "e")
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1/chat/completions"
        for turn in range(TURNS):
            if turn == TURNS // 2:
                relay._said = Receiver()  # as a relay that was started anew
            parsed.append(0)
            async with http.post(url, json={"model": "m", "messages": messages, "tools": [TOOL]}) as response:
                said = (await response.json())["choices"][0]["message"]
            result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": f"{turn} lines\n" * 3}
            messages += [said, result]
        await gateway.close()

    assert parsed == [2] * TURNS, "of each request what was new: an answer and its tool's, or the first two"
    assert sorted(sent)[:-1] == [2] * TURNS, "and so on the wire, but for the once that the relay had forgotten"
    assert max(sent) == 2 * (TURNS // 2) + 2
    asked = [forms.template_form(each) for each in talk.transcript.turns[-1].history[:-1]]
    assert len(asked) == 2 * TURNS and engine.requests[-1].prompt_ids == tokenizer.render(asked, tools=[TOOL])
    (sample,) = talk.transcript.samples()
    assert len(talk.transcript.turns) == TURNS and sample.sampled == talk.transcript.sampled == sum(sample.mask)
    assert [i for i, masked in zip(sample.ids, sample.mask, strict=True) if masked] == [
        i for each in engine.answers for i in each.token_ids
    ]
