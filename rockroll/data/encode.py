"""A written conversation as the tokens that the policy would have seen and said.

In: a Conversation and the model's tokenizer. Out: samples whose mask covers the answers that are learnt, their ends of
turn included. Leaves the rules of branches to rollout/transcript.py, which is what keeps both alike: each answer is
recorded in a transcript as if it had been sampled, so that what is learnt from is what an episode looks like.

Where a template shows an answer otherwise once more was said (it drops earlier thoughts, say), the conversation becomes
several samples, and each answer is learnt once.
"""

from __future__ import annotations

from typing import Any

from rockroll.data.forms import Conversation
from rockroll.engine.api import Generation
from rockroll.errors import RockrollError, UsageError
from rockroll.model_service.wire import Tool
from rockroll.rollout import messages as said
from rockroll.rollout.sample import Sample
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.rollout.transcript import Transcript


def encode(tokenizer: ChatTokenizer, conversation: Conversation, where: str) -> list[Sample]:
    """Raises UsageError, beginning with `where`, for messages that the model's template cannot show."""
    transcript, messages = Transcript(tokenizer), conversation.messages
    try:
        tools = [_tool(tool) for tool in conversation.tools]
        for number in range(max(conversation.learnt, 1), len(messages)):
            if messages[number]["role"] != "assistant":
                continue
            prompt = transcript.prompt(messages[:number], tools)
            ids = [*tokenizer.encode(_answer(tokenizer, conversation, number, tools)), tokenizer.stop_ids[0]]
            zeros, nobody = [0.0] * len(ids), [-1] * len(ids)
            sampled = Generation(token_ids=ids, logprobs=zeros, versions=nobody, finish_reason="stop")
            transcript.record(prompt, sampled)
    except RockrollError as error:
        raise UsageError(f"{where}: {error}") from error
    return transcript.samples()


def _answer(tokenizer: ChatTokenizer, conversation: Conversation, number: int, tools: list[Tool]) -> str:
    """What the template writes of that answer: from the prompt's end to the end of turn."""
    known = said.template_tools(tools) or None
    before = tokenizer.text(conversation.messages[:number], tools=known)
    whole = tokenizer.text(conversation.messages[: number + 1], tools=known, add_generation_prompt=False)
    if not whole.startswith(before):
        raise UsageError(
            f"the model's chat template does not continue its own prompt with the answer in message {number}; the "
            f"prompt ends with {before[-40:]!r}"
        )
    stop = next(text for text, id in tokenizer.stop_texts.items() if id == tokenizer.stop_ids[0])
    answer, closed, _ = whole[len(before) :].rpartition(stop)
    if not closed:
        raise UsageError(f"the model's chat template does not close the answer in message {number} with {stop!r}")
    return answer


def _tool(tool: Any) -> Tool:
    function = tool.get("function", tool)
    return Tool(
        name=function["name"], description=function.get("description", ""), parameters=function.get("parameters", {})
    )
