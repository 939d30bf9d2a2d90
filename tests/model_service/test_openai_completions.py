"""OpenAI's completions: what is honoured, what is refused and how, and that no bytes break it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects.openai import error_status
from rockroll.model_service.dialects.openai_completions import COMPLETIONS, Text
from rockroll.model_service.wire import ChatReply, TokenLogprob
from tests.model_service.speech import any_json, call, holds, near, read, spoken, streamed


def parse(**fields: Any) -> Text:
    text = call(COMPLETIONS, {"model": "m", "prompt": "Once", **fields})
    assert isinstance(text, Text)
    return text


# ---------------------------------------------------------------------------------------------------------------
# Honoured
# ---------------------------------------------------------------------------------------------------------------


def test_the_prompt_goes_to_the_model_as_it_is_without_messages():
    (request,) = parse(prompt=["Once upon"]).requests("id", "box", "token")
    assert (request.prompt, request.messages) == ("Once upon", [])


def test_sampling_options_are_passed_on():
    text = parse(max_tokens=5, temperature=0.5, top_p=0.9, stop="END", seed=3, n=2, logprobs=3, best_of=2)
    assert (text.max_tokens, text.temperature, text.top_p, text.stop) == (5, 0.5, 0.9, ["END"])
    assert (text.seed, text.n, text.logprobs) == (3, 2, 3)


def test_without_max_tokens_it_is_openais_16():
    assert parse().max_tokens == 16


def test_log_probs_have_the_older_shape():
    said = [
        TokenLogprob(token="a ", bytes=[], logprob=-0.5, top=[("b", -1.0)]),
        TokenLogprob(token="b", bytes=[], logprob=-1),
    ]
    reply = ChatReply(text="a b", finish_reason="length", prompt_tokens=1, completion_tokens=2, logprobs=said)
    (choice,) = json.loads(parse(logprobs=1).answer("id", 0, [reply]))["choices"]
    assert choice["finish_reason"] == "length" and choice["logprobs"] == {
        "tokens": ["a ", "b"],
        "token_logprobs": [-0.5, -1],
        "top_logprobs": [{"b": -1.0}, {}],
        "text_offset": [4, 6],
    }


def test_fields_that_say_nothing_or_do_not_touch_the_text_are_ignored():
    parse(user="me", echo=False, suffix=None, presence_penalty=0, logit_bias={}, best_of=1, stop=None)


# ---------------------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": None}, "prompt", "at least one character"),
        ({"prompt": ""}, "prompt", "at least one character"),
        ({"prompt": []}, "prompt", "got 0"),
        ({"prompt": ["a", "b"]}, "prompt", "make a call for each"),
        ({"prompt": [1, 2]}, "prompt", "token ids are not taken"),
        ({"prompt": [[1, 2]]}, "prompt", "token ids are not taken"),
        ({"echo": True}, "echo", "yourself"),
        ({"suffix": "end"}, "suffix", "not supported"),
        ({"best_of": 3}, "best_of", "choose yourself"),
        ({"logprobs": 21}, "logprobs", "0 to 20"),
        ({"n": 17}, "n", "at most 16"),
        ({"frequency_penalty": 1}, "frequency_penalty", "only 0"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"top_k": 5}, "top_k", "not supported"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"temperature": -1}, "temperature", "between 0 and 2"),
    ],
)
def test_a_refusal_names_the_field_and_what_to_do(fields, param, words):
    with pytest.raises(ModelServiceError) as caught:
        parse(**fields)
    assert error_status(caught.value) == 400
    assert caught.value.fields["param"] == param and words in caught.value.message


# ---------------------------------------------------------------------------------------------------------------
# For any input
# ---------------------------------------------------------------------------------------------------------------

FULL = {
    "model": "m",
    "prompt": ["Once"],
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "stop": ["x"],
    "seed": 1,
    "n": 2,
    "logprobs": 2,
    "best_of": 2,
    "echo": False,
    "stream": True,
    "stream_options": {"include_usage": True},
}
_values = any_json(st.sampled_from(sorted(FULL)))


@given(st.binary())
def test_no_bytes_raise_anything_but_a_refusal(body):
    holds(COMPLETIONS, body)


@given(_values | near(FULL, _values))
def test_no_json_raises_anything_but_a_refusal(value):
    holds(COMPLETIONS, json.dumps(value).encode())


@given(st.lists(spoken(), min_size=1, max_size=3), st.booleans())
def test_the_events_joined_are_the_whole_answer(said, include_usage):
    text = parse(n=len(said), stream=True, stream_options={"include_usage": include_usage})
    whole = json.loads(text.answer("id", 7, [reply for reply, _ in said]))
    events = read(streamed(text.events("id", 7), said))
    assert events.pop() == (None, "[DONE]")
    chunks = [chunk for _, chunk in events]
    if include_usage:
        assert chunks[-1]["choices"] == [] and chunks.pop()["usage"] == whole["usage"]
    for index, choice in enumerate(whole["choices"]):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(each["text"] for each in mine) == choice["text"]
        assert [each["finish_reason"] for each in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        for key, values in (choice["logprobs"] or {}).items():
            assert [value for each in mine if each["logprobs"] for value in each["logprobs"][key]] == values
