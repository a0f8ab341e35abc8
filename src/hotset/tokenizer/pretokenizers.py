"""How byte-level BPE models cut text into words, by the name that GGUF keeps in ``tokenizer.ggml.pre``.

Each is a list of regular expressions (Oniguruma, Unicode), applied one after the other: every match, and
every gap between matches, becomes a word of its own. They are those of the models' published
``tokenizer.json`` files.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """What surrounds the merges of one family of byte-level BPE tokenizers."""

    expressions: tuple[str, ...]
    nfc: bool = False
    """Text is brought to Unicode's composed form (NFC) first."""
    ignore_merges: bool = False
    """A word that is a token is that token, whatever the merges give."""
    add_bos: bool = False
    """Default of ``tokenizer.ggml.add_bos_token``."""


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_AFTER_DIGITS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_AFTER_DIGITS}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_AFTER_DIGITS}"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_AFTER_DIGITS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
    rf"\p{{N}}|{_AFTER_DIGITS_SLASH}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?|"
    rf"\p{{N}}{{1,3}}|{_AFTER_DIGITS_SLASH}"
)
# Letters with case, of the Unicode version that DeepSeek took.
_DEEPSEEK_LETTERS = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}"
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}"
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}"
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}"
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}"
    r"\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}"
    r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}"
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}"
    r"\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}"
    r"\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}"
    r"\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}"
    r"\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}"
    r"\x{1E900}-\x{1E943}"
)
_DEEPSEEK_CJK = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_DEEPSEEK_PUNCTUATION = r"!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}"

_DEEPSEEK3_REST = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLOOM = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_AFMOE_SCRIPTS = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{30FF}\x{FF65}-\x{FF9F}"
    r"\x{2F00}-\x{2FDF}\x{E40}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}"
    r"\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
)
# Digits in threes, counted from the right.
_THREES = r"\d{1,3}(?=(?:\d{3})*(?!\d))"
_THREES_OF_NUMBERS = r"\d{1,3}(?=(?:\d{3})*\b)"

_PLAIN_GPT2 = PreTokenizer((_GPT2,))
_GPT2_NFC = PreTokenizer((_GPT2,), nfc=True)
_GPT2_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_PLAIN_LLAMA3 = PreTokenizer((_LLAMA3,))
_LLAMA3_WORDS = PreTokenizer((_LLAMA3,), ignore_merges=True)
_LLAMA3_BOS = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_PLAIN_QWEN2 = PreTokenizer((_QWEN2,))
_QWEN2_NFC = PreTokenizer((_QWEN2,), nfc=True)
_O200K = PreTokenizer((_GPT4O,))
_O200K_THREES = PreTokenizer((_THREES_OF_NUMBERS, _GPT4O))
_PLAIN_BLOOM = PreTokenizer((_BLOOM,))
_PLAIN_BAILING = PreTokenizer((_BAILING,))
_DEEPSEEK3 = PreTokenizer(
    (r"\p{N}{1,3}", r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+", _DEEPSEEK3_REST)
)

PRE_TOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "jais", "trillion", "exaone4", "gigachat"), _PLAIN_GPT2),
    **dict.fromkeys(("a.x-4.0", "mellum", "granite-docling"), _PLAIN_GPT2),
    **dict.fromkeys(("mpt", "olmo"), _GPT2_NFC),
    **dict.fromkeys(("smollm", "starcoder", "refact", "exaone", "minerva-7b", "codeshell"), _GPT2_DIGITS),
    "mellum2": _GPT2_DIGITS,
    "command-r": PreTokenizer((r"\p{N}", _GPT2), nfc=True),
    "falcon": PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _PLAIN_BLOOM),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"), _LLAMA3_BOS),
    **dict.fromkeys(("lfm2", "midm-2.0", "jina-v5-nano"), _LLAMA3_BOS),
    "glm4": _LLAMA3_WORDS,
    **dict.fromkeys(("chatglm-bpe", "glm5", "dbrx", "smaug-bpe"), _PLAIN_LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2_NFC),
    **dict.fromkeys(("stablelm2", "kormo", "f2llmv2", "megrez", "hunyuan"), _PLAIN_QWEN2),
    **dict.fromkeys(("solar-open", "grok-2"), _PLAIN_QWEN2),
    "qwen35": PreTokenizer((_QWEN35,), nfc=True),
    "laguna": PreTokenizer((r"\n+", _QWEN2)),
    "seed-coder": PreTokenizer((_SEED,)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _O200K),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _O200K_THREES),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            rf"\s?[{_DEEPSEEK_PUNCTUATION}]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3),
    "afmoe": PreTokenizer((_THREES, _AFMOE_SCRIPTS, _DEEPSEEK3_REST)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _PLAIN_BAILING),
}
"""By the value of ``tokenizer.ggml.pre``."""
