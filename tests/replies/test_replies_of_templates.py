"""What chat templates write as a call is read as that call."""

import json
from pathlib import Path

import pytest

from hotset.replies import Tool, collect, parser_for, starts_inside
from hotset.tokenizer.chat_template import ChatTemplate

TEMPLATES = Path(__file__).parents[1] / "tokenizer" / "templates"
NAMES = [
    *("qwen_2_5_with_tools", "qwen_3_thinking", "qwen_3_5", "qwen_3_coder", "glm_4_5", "gemma_4"),
    *("mistral_v3_with_tools", "mistral_tekken_with_tools", "deepseek_r1", "deepseek_v3_1"),
    *("gpt_oss_harmony", "nemotron_3", "nemotron_nano", "minimax_m2", "seed_oss", "exaone_4"),
    *("hermes_tools", "granite_4", "llama_3_1_with_tools", "command_a_reasoning", "north_mini_code"),
]
PARAMETERS = {"properties": {"city": {"type": "string", "description": ""}, "days": {"type": "integer"}}}
FUNCTION = {"name": "weather", "description": "d", "parameters": {"type": "object", **PARAMETERS}}
TOOLS = [{"type": "function", "function": FUNCTION}]
ARGUMENTS = {"city": 'Bern, "CH" <é>\nnow', "days": 3}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": ARGUMENTS}}


@pytest.mark.parametrize("name", NAMES)
def test_a_call_as_the_template_writes_it(name):
    source = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    user = {"role": "user", "content": "hi"}
    said = {"role": "assistant", "content": "", "reasoning_content": "I think.", "tool_calls": [CALL]}
    prompt = template.render([user], tools=TOOLS)
    whole = template.render([user, said], tools=TOOLS, add_generation_prompt=False)
    at = next(
        (i for i, pair in enumerate(zip(prompt, whole, strict=False)) if len(set(pair)) > 1), len(prompt)
    )
    if at < len(prompt):  # the last mark that both have
        at = max(whole.rfind(end, 0, at) for end in ">]\n") + 1
    inside = at == len(prompt) and starts_inside(source, prompt)
    parser = parser_for(source, starts_inside=inside, tools=[Tool.from_schema(tool) for tool in TOOLS])
    reply = collect(parser.feed(whole[at:]) + parser.end())
    assert [(call.name, json.loads(call.arguments)) for call in reply.calls] == [("weather", ARGUMENTS)]
    assert reply.reasoning in ("", "I think.")
    assert "weather" not in reply.content


def test_lfm_writes_line_ends_as_they_are():
    parser = parser_for("List of tools: ", starts_inside=False, tools=[Tool("f")])
    events = parser.feed("<|tool_call_start|>[f(a='one\ntwo', b=\"it's\\n\")]<|tool_call_end|>Done.")
    reply = collect(events + parser.end())
    assert json.loads(reply.calls[0].arguments) == {"a": "one\ntwo", "b": "it's\n"}
    assert reply.content == "Done."
