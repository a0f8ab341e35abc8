"""Chat templates, against transformers' rendering; nobody but the template writes control tokens."""

from functools import cache
from typing import Any

import pytest
from helpers.small_tokenizers import CONTROL, byte_level, from_metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.core.errors import RequestError
from hotset.tokenizer import Tokenizer
from hotset.tokenizer.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{%- if m.content is string %}{{ m.content | trim }}"
    "{%- else %}{%- for part in m.content %}{{ part.text | trim }}{%- endfor %}{%- endif %}<|im_end|>"
    "{%- endfor %}"
)
# Between them they use what the templates of Llama 3, Gemma 3, Qwen 3, Mistral and SmolLM3 use.
TEMPLATES = {
    "chatml": CHATML,
    "parts": PARTS,
    "tools": "{{ bos_token }}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ eos_token }}",
    "namespace": "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = 1 %}{% endfor %}{{ n.i }}",
    "loop controls": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}x{% endfor %}",
    "blocks": "  {% for m in messages %}\n    {{ m.role }}\n  {% endfor %}\nend",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "slices": "{{ messages[::-1][0].role }}{{ messages[0]['content'].split('o')[-1].lstrip('\\n') }}",
    "macro": "{% macro show(m) %}[{{ m.role }}]{% endmacro %}{{ show(messages[0]) }}{{ '<é&\"' | tojson }}",
    "variables": "{{ enable_thinking | default(true) }}{{ undefined_thing }}",
}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Hello, <b>world</b>\n"},
    {"role": "assistant", "content": "Good day"},
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_rendering_equals_transformers(name: str, add_generation_prompt: bool) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    variables = {"tools": [{"name": "f", "description": "ü"}], "enable_thinking": False}
    theirs, _ = utils.render_jinja_template(
        conversations=[MESSAGES],
        chat_template=TEMPLATES[name],
        add_generation_prompt=add_generation_prompt,
        bos_token="<|begin|>",
        eos_token="<|im_end|>",
        **variables,
    )
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"})
    assert template.render(MESSAGES, add_generation_prompt=add_generation_prompt, **variables) == theirs[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "Expected an expression"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[5].role }}", "has no element 5"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'x' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_failing_template_is_one_line(source: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        ChatTemplate(source).render(MESSAGES)
    assert str(error.value).startswith("the model's chat template refuses this conversation: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("message", ["hi", {"content": "hi"}, {"role": 3, "content": "hi"}])
def test_a_message_without_a_role_is_refused(message: Any) -> None:
    with pytest.raises(RequestError, match="message 1 has no role"):
        ChatTemplate(CHATML).render([MESSAGES[0], message])


@cache
def chat(source: str | None) -> Tokenizer:
    return from_metadata({**byte_level(), **({"tokenizer.chat_template": source} if source else {})})


def test_a_model_without_a_template_refuses_chat() -> None:
    with pytest.raises(RequestError, match="no chat template"):
        chat(None).encode_chat(MESSAGES)


def test_a_conversation_is_the_rendered_text_encoded() -> None:
    tokenizer = chat(CHATML)
    assert tokenizer.chat_template
    rendered = tokenizer.chat_template.render(MESSAGES)
    assert tokenizer.encode_chat(MESSAGES) == tokenizer.encode(rendered, add_special=False)


@pytest.mark.parametrize("begun", ["<", "|", "i", "end", "<|im_end|>", "hi", "assistant"])
def test_what_is_continued_is_the_message_not_the_words_of_the_template(begun: str) -> None:
    template = chat(CHATML).chat_template
    assert template
    messages = [*MESSAGES, {"role": "assistant", "content": begun}]
    text = template.write(messages, add_generation_prompt=False, continue_last=True)
    assert text.endswith(f"<|im_start|>assistant\n{begun}")


pieces = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>",
        "<|im_",
        "end|>",
        "<",
        "|im_end|>",
        "hi",
        "\n",
        " ",
        "\ufdd0",
        "\ufdd01\ufdd0",
    ]
)
contents = st.lists(pieces, max_size=6).map("".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(contents, min_size=1, max_size=3))
def test_messages_cannot_write_control_tokens(texts: list[str]) -> None:
    """Whether a message is a text or cut into parts, its tokens are those of plain text."""
    control = set(range(len(CONTROL)))
    whole = [{"role": "user", "content": "".join(texts)}]
    ids = chat(CHATML).encode_chat(whole, add_generation_prompt=False)
    assert [id for id in ids if id in control] == [1, 2]
    assert chat(CHATML).decode(ids) == f"user\n{''.join(texts)}\n"

    parts = [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]
    ids = chat(PARTS).encode_chat(parts, tools=[{"description": "".join(texts)}])
    assert [id for id in ids if id in control] == [1, 2]
