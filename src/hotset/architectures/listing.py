"""The families that run, as a list for people: what `hotset models` prints and docs/guide/models.md has."""

from dataclasses import dataclass

from hotset.architectures.row import Architecture
from hotset.architectures.table import ARCHITECTURES

# By the first model_type, or by the name where Hugging Face has none; others are called by their name.
_TITLES = {
    "llama": "Llama 1 to 3, SmolLM2",
    "mistral": "Mistral, Mistral Small 3",
    "bamboo": "Bamboo, TurboSparse-Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "gemma4_text": "Gemma 4",
    "falcon": "Falcon",
    "opt": "OPT",
    "nemotron": "Nemotron, Minitron",
    "smollm3": "SmolLM3",
    "phi3": "Phi-3, Phi-3.5, Phi-4",
    "ministral3": "Ministral 3, Devstral 2",
    "granite": "Granite 3",
    "granitemoe": "Granite 3 and 4 mixtures",
    "granitemoehybrid": "Granite 4",
    "arcee": "AFM (Arcee)",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "exaone4": "EXAONE 4",
    "seed_oss": "Seed-OSS",
    "glm4": "GLM-4 0414",
    "glm4_moe": "GLM-4.5, GLM-4.6",
    "ernie4_5": "ERNIE 4.5",
    "ernie4_5_moe": "ERNIE 4.5 mixtures",
    "mellum": "Mellum 2",
    "laguna": "Laguna XS and S",
    "cohere2_moe": "North-Mini-Code",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3 mixtures, Qwen3-Coder",
    "qwen2_moe": "Qwen1.5 and Qwen2 mixtures",
    "olmoe": "OLMoE",
    "gpt_oss": "gpt-oss",
    "smallthinker": "SmallThinker",
    "qwen3_5_text": "Qwen3.5, 3.6, 3.8",
    "qwen3_5_moe_text": "Qwen3.5 and 3.6 mixtures",
    "qwen3_next": "Qwen3-Next, Qwen3-Coder-Next",
    "lfm2": "LFM2, LFM2.5",
    "lfm2_moe": "LFM2 mixtures",
    "nemotron_h": "Nemotron Nano v2, Nemotron 3",
    "deepseek_v2": "DeepSeek-V2-Lite, Coder-V2-Lite",
    "deepseek_v3": "DeepSeek-V3, R1, GigaChat 3, Kanana 2",
    "glm4_moe_lite": "GLM-4.7-Flash",
}


@dataclass(frozen=True)
class Family:
    """Models of one kind."""

    title: str
    gguf: str
    """Its architecture in GGUF files."""
    model_types: str
    """Those of Hugging Face's config.json; empty: none of such files are read."""
    layers: str
    """What its layers have besides attention and one FFN."""
    exact: bool
    """Neurons are left out where they are exactly zero."""


HEADER = ("models", "GGUF", "Hugging Face", "layers", "exact skipping")


def families() -> list[Family]:
    """Every family, in the table's order."""
    found: dict[str, Family] = {}
    for row in ARCHITECTURES:
        key = (*row.model_types, row.name)[0]
        layers, name = _layers(row), row.name
        if first := found.get(key):  # a row for the family's models that are mixtures
            layers = f"{first.layers}; some: {layers}"
            name = name if name == first.gguf else f"{first.gguf}, {name}"
        title, exact = _TITLES.get(key, row.name), row.activation.zero_producing
        found[key] = Family(title, name, ", ".join(row.model_types), layers, exact)
    return list(found.values())


def cells(family: Family) -> tuple[str, ...]:
    """The family's line of the table."""
    exact = "yes" if family.exact else ""
    return family.title, family.gguf, family.model_types or "–", family.layers, exact


def markdown() -> str:
    """The table for docs/guide/models.md."""
    rows = [HEADER, tuple("---" for _ in HEADER), *map(cells, families())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _layers(row: Architecture) -> str:
    kinds = {
        "ssm_out": "gated delta nets" if row.delta_net else "state spaces",
        "shortconv_out": "short convolutions",
    }
    parts = [kind for tensor, kind in kinds.items() if tensor in row.tensors]
    parts.append("latent attention" if row.latent else "attention")
    parts.append("experts" if row.experts else "FFN")
    return ", ".join(parts)
