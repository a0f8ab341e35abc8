"""Conversations that a model's template refuses as they are: they are put in a plainer form."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from hotset.core.errors import RequestError
from hotset.server.ask import Conversation
from hotset.server.conversation import check_messages, written
from hotset.server.fields import Fields
from hotset.tokenizer.chat_template import ChatTemplate

TEMPLATES = Path(__file__).parents[1] / "tokenizer/templates"
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"function": {"name": "f", "arguments": {"a": 1}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def template(name):
    source = (TEMPLATES / f"{name}.jinja").read_text() if name.isidentifier() else name
    made = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return SimpleNamespace(tokenizer=SimpleNamespace(chat_template=made))


def write(name, *messages, tools=()):
    given = check_messages(Fields({"messages": list(messages)}, ""))
    return written(template(name), Conversation(given, tools))


@pytest.mark.parametrize(
    "name", ["gemma_2", "gemma_3", "llama_2", "mistral_v1", "mistral_v3_with_tools", "mixtral"]
)
def test_both_sides_take_turns(name):
    """A client repeats what had no answer, or begins with two texts."""
    twice = write(name, SYSTEM, user("One."), user("Two."), assistant("Yes."), user("Three."))
    assert twice == write(name, SYSTEM, user("One.\n\nTwo."), assistant("Yes."), user("Three."))
    prefilled = write(name, user("One."), assistant("Yes"), assistant("and"))
    assert prefilled == write(name, user("One."), assistant("Yes\n\nand"))
    assert prefilled.endswith("and")


def test_the_user_says_what_the_system_may_not():
    assert write("gemma_2", SYSTEM, user("Hi.")) == write("gemma_2", user("Be brief.\n\nHi."))
    assert write("gemma_2", SYSTEM) == write("gemma_2", user("Be brief."))
    later = write("mistral_v1", user("Hi."), SYSTEM)
    assert later == write("mistral_v1", user("Hi.\n\nBe brief."))


@pytest.mark.parametrize("name", ["hermes_tools", "gpt_oss_harmony", "seed_oss", "command_a_reasoning"])
@pytest.mark.parametrize("function", [{}, {"parameters": {}}, {"description": None, "parameters": None}])
def test_a_tool_needs_a_name_alone(name, function):
    tool = {"type": "function", "function": {"name": "fetch", **function}}
    assert "fetch" in write(name, user("Hi."), tools=[tool])


IDS = (
    "{% for m in messages %}{% for call in m.tool_calls or [] %}"
    "{% if call.id|length != 9 %}{{ raise_exception('nine letters and digits') }}{% endif %}"
    "[{{ call.function.name }} {{ call.id }}]{% endfor %}"
    "{% if m.role == 'tool' %}[{{ m.content }} {{ m.tool_call_id }}]{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("ids", [(), ("call_of_another_server", "call_more")])
def test_ids_of_calls_that_a_template_refuses(ids):
    """Ollama's clients have none, and other servers' are of other forms."""
    calls = [CALL | ({"id": ids[i]} if ids else {}) for i in range(2)]
    results = [
        {"role": "tool", "content": f"{i}", **({"tool_call_id": ids[i]} if ids else {})} for i in range(2)
    ]
    again = [assistant("", tool_calls=calls[:1]), results[0]]
    prompt = write(IDS, user("Hi."), assistant("", tool_calls=calls), *results, *again)
    assert prompt.startswith("[f call00000][f call00001][0 call00000][1 call00001]")
    assert prompt.endswith("[f call00002][0 call00002]")


@pytest.mark.parametrize("told", [{"tool_call_id": "abc"}, {"tool_name": "f"}, {"name": "f"}])
def test_a_tools_result_has_its_name(told):
    """Clients of OpenAI's API tell it by the call's id, Ollama's in a field of another name."""
    call = CALL | {"id": "abc"}
    prompt = write(
        "gemma_4", user("Hi."), assistant("", tool_calls=[call]), {"role": "tool", "content": "x", **told}
    )
    assert "<|tool_response>response:f{" in prompt


def test_what_no_form_helps_is_refused_with_the_templates_own_words():
    with pytest.raises(RequestError, match="roles must alternate"):
        write("gemma_2", assistant("Hi."), user("Hi."))
