"""What each family writes: pieces of its chat template, and texts made of reasoning, content and calls."""

import json
from dataclasses import dataclass

from hotset.replies import Tool

TOOLS = (
    Tool(
        "weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "more": {"type": "object"},
                "names": {"type": "array"},
            },
        },
    ),
    Tool("files.read", {"type": "object", "properties": {"city": {"type": "string"}}}),
)
NAMES = tuple(tool.name for tool in TOOLS)


@dataclass(frozen=True)
class Written:
    """How a family writes a reply; `template` is what its chat template is known by."""

    name: str
    template: str
    think: tuple[str, str] | None
    calls: object
    """Gives the text of calls, (name, arguments) each."""


def dumps(value):
    return json.dumps(value, ensure_ascii=False)


def hermes(calls):
    return "\n".join(
        f'<tool_call>\n{{"name": "{n}", "arguments": {dumps(a)}}}\n</tool_call>' for n, a in calls
    )


def plain(value):
    return value if isinstance(value, str) else dumps(value)


def qwen(calls):
    def one(name, arguments):
        members = "".join(f"<parameter={k}>\n{plain(v)}\n</parameter>\n" for k, v in arguments.items())
        return f"<tool_call>\n<function={name}>\n{members}</function>\n</tool_call>"

    return "\n".join(one(*call) for call in calls)


def glm(calls):
    def one(name, arguments):
        members = "".join(
            f"<arg_key>{k}</arg_key>\n<arg_value>{plain(v)}</arg_value>\n" for k, v in arguments.items()
        )
        return f"<tool_call>{name}\n{members}</tool_call>"

    return "\n".join(one(*call) for call in calls)


def minimax(calls):
    def one(name, arguments):
        members = "".join(f'<parameter name="{k}">{plain(v)}</parameter>\n' for k, v in arguments.items())
        return f'<invoke name="{name}">\n{members}</invoke>\n'

    return f"<minimax:tool_call>\n{''.join(one(*call) for call in calls)}</minimax:tool_call>"


def gemma(calls):
    def value(v):
        if isinstance(v, str):
            return f'<|"|>{v}<|"|>'
        if isinstance(v, dict):
            return "{" + ",".join(f"{k}:{value(x)}" for k, x in v.items()) + "}"
        if isinstance(v, list):
            return "[" + ",".join(map(value, v)) + "]"
        return dumps(v)

    return "".join(f"<|tool_call>call:{n}{value(a)}<tool_call|>" for n, a in calls)


def python(calls):
    def one(name, arguments):
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"

    return f"<|tool_call_start|>[{', '.join(one(*call) for call in calls)}]<|tool_call_end|>"


def deepseek_v3(calls):
    parts = (f"function<｜tool▁sep｜>{n}\n```json\n{dumps(a)}\n```" for n, a in calls)
    whole = "\n".join(f"<｜tool▁call▁begin｜>{part}<｜tool▁call▁end｜>" for part in parts)
    return f"<｜tool▁calls▁begin｜>{whole}<｜tool▁calls▁end｜>"


def deepseek(calls):
    parts = (f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{dumps(a)}<｜tool▁call▁end｜>" for n, a in calls)
    return f"<｜tool▁calls▁begin｜>{''.join(parts)}<｜tool▁calls▁end｜>"


def listed(calls):
    return dumps([{"name": n, "arguments": a} for n, a in calls])


def mistral(calls):
    return f"[TOOL_CALLS] {listed(calls)}"


def mistral_new(calls):
    return "".join(f"[TOOL_CALLS]{n}[ARGS]{dumps(a)}" for n, a in calls)


def nemotron(calls):
    return f"<TOOLCALL>{listed(calls)}</TOOLCALL>"


def cohere(calls):
    parts = (
        f'\n    {{"tool_call_id": "{i}", "tool_name": "{n}", "parameters": {dumps(a)}}}'
        for i, (n, a) in enumerate(calls)
    )
    return f"<|START_ACTION|>[{','.join(parts)}\n]<|END_ACTION|>"


def llama(calls):
    return "".join(f'<|python_tag|>{{"name": "{n}", "parameters": {dumps(a)}}}' for n, a in calls)


THINK = ("<think>", "</think>")
TAGGED = [
    Written("Hermes and Qwen 3", "<think></think><tool_call>", THINK, hermes),
    Written("Qwen 3.5 and Coder", "<think></think><tool_call>\n<function=x>", THINK, qwen),
    Written("GLM", "<think></think><tool_call><arg_key>", THINK, glm),
    Written("MiniMax", "<think></think><minimax:tool_call>", THINK, minimax),
    Written(
        "Gemma 4", "<|channel>thought<channel|><|tool_call>call:", ("<|channel>thought", "<channel|>"), gemma
    ),
    Written("LFM2", "<think></think><|tool_call_start|>", THINK, python),
    Written("DeepSeek V3", "</think><｜tool▁call▁begin｜>", THINK, deepseek_v3),
    Written("DeepSeek V3.1", "</think><｜tool▁call▁begin｜>", THINK, deepseek),
    Written("Mistral", "[TOOL_CALLS]", None, mistral),
    Written("Ministral 3", "[TOOL_CALLS][ARGS][THINK][/THINK]", ("[THINK]", "[/THINK]"), mistral_new),
    Written("Nemotron 2", "<think></think><TOOLCALL>", THINK, nemotron),
    Written(
        "Cohere",
        "<|START_THINKING|><|END_THINKING|><|START_ACTION|><|START_TEXT|>",
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        cohere,
    ),
    Written("Llama 3", "<|start_header_id|><|python_tag|>", None, llama),
]


def harmony(reasoning, content, calls):
    """A reply of gpt-oss, from where its prompt ends."""
    parts = []
    if reasoning:
        parts.append(f"<|channel|>analysis<|message|>{reasoning}")
    if content:
        parts.append(f"<|channel|>final<|message|>{content}")
    for name, arguments in calls:
        parts.append(
            f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dumps(arguments)}"
        )
    return "<|end|><|start|>assistant".join(parts)
