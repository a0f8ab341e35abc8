"""How texts are cut into words, by the names that GGUF has for it; with the models' published rules."""

import pytest
from helpers.small_tokenizers import byte_level, from_metadata, texts
from hypothesis import given, settings

from hotset.tokenizer.pretokenizers import PRE_TOKENIZERS

TEXT = "Hello   World's 1234567 km²!!\n\nДа, don't。ok"


def words(pre: str, text: str) -> list[str]:
    from tokenizers import Regex, pre_tokenizers

    rules = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in PRE_TOKENIZERS[pre].expressions]
    return [word for word, _ in pre_tokenizers.Sequence(rules).pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("others", "known"),
    [
        (("midm-2.0", "lfm2", "jina-v5-nano"), "llama-bpe"),
        (("chatglm-bpe", "glm5"), "dbrx"),
        (("megrez", "hunyuan", "kormo", "f2llmv2", "solar-open", "grok-2"), "stablelm2"),
        (("kanana2", "talkie", "minimax-m2"), "gpt-4o"),
        (("hunyuan-dense", "joyai-llm", "hy_v4"), "deepseek-v3"),
        (("a.x-4.0", "mellum", "trillion", "exaone4", "gigachat", "granite-docling", "jais"), "gpt-2"),
        (("exaone", "minerva-7b", "codeshell", "mellum2"), "starcoder"),
        (("cohere2moe",), "tiny_aya"),
        (("bailingmoe2", "llada-moe"), "bailingmoe"),
        (("poro-chat", "gpt3-finnish"), "bloom"),
    ],
)
def test_other_names_of_known_rules(others: tuple[str, ...], known: str) -> None:
    assert {PRE_TOKENIZERS[other] for other in others} == {PRE_TOKENIZERS[known]}


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", "Hello|  | World|'s| 1234567| km|²|!!|\n|\n|Да|,| don|'t|。|ok"),
        ("minerva-7b", "Hello|  | World|'s| |1|2|3|4|5|6|7| km|²|!!|\n|\n|Да|,| don|'t|。|ok"),
        ("megrez", "Hello|  | World|'s| |1|2|3|4|5|6|7| km|²|!!\n\n|Да|,| don|'t|。ok"),
        ("seed-coder", "Hello|  | World|'s| |1|2|3|4|5|6|7| km|²|!!|\n\n|Да|,| don|'t|。ok"),
        ("midm-2.0", "Hello|  | World|'s| |123|456|7| km|²|!!\n\n|Да|,| don|'t|。ok"),
        ("tiny_aya", "Hello|  | World's| |1|234|567| km|²|!!\n\n|Да|,| don't|。ok"),
        ("afmoe", "Hello|  | World|'s| |1|234|567| km|²|!!\n\n|Да|,| don|'t|。|ok"),
        ("viking", "Hello|  | World's| |1|2|3|4|5|6|7| km|²|!!\n\n|Да|,| don't|。|ok"),
        ("bloom", "Hello|  | World's| 1234567| km²|!!\n\n|Да|,| don't|。|ok"),
        ("laguna", "Hello|  | World|'s| |1|2|3|4|5|6|7| km|²|!!|\n\n|Да|,| don|'t|。ok"),
        ("bailingmoe", "Hello|  | World|'s| |1|2|3|4|5|6|7| km|²|!!\n\n|Да|,| don|'t|。ok"),
        ("kanana2", "Hello|  | World's| |123|456|7| km|²|!!\n\n|Да|,| don't|。ok"),
    ],
)
def test_words(pre: str, expected: str) -> None:
    assert words(pre, TEXT) == expected.split("|")


def test_digits_in_threes_from_the_right_stop_at_letters_or_not() -> None:
    assert words("tiny_aya", "12345 1234x") == ["12", "345", " ", "123", "4", "x"]
    assert words("afmoe", "12345 1234x") == ["12", "345", " ", "1", "234", "x"]


def test_marks_are_letters_to_qwen_3_5() -> None:
    text = "नमस्ते दुनिया हि!"
    assert words("qwen35", text) == ["नमस्ते", " दुनिया", " हि", "!"]
    assert words("qwen2", text)[:3] == ["नमस", "्त", "े"]


def test_qwen_3_5_equals_transformers() -> None:
    tokenization = pytest.importorskip("transformers.models.qwen3_5.tokenization_qwen3_5")
    metadata = {**byte_level(), "tokenizer.ggml.pre": "qwen35"}
    theirs = tokenization.Qwen3_5Tokenizer(
        vocab={token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])},
        merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
        unk_token=None,
        eos_token=None,
        pad_token=None,
    )
    metadata["tokenizer.ggml.token_type"] = metadata["tokenizer.ggml.token_type"] * 0 + 1
    ours = from_metadata(metadata)

    @settings(max_examples=100, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        ids = ours.encode(text, add_special=False, parse_special=False)
        assert ids == theirs.encode(text, add_special_tokens=False)

    check()


def test_no_rule_loses_text() -> None:
    @settings(max_examples=40, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        for pre in {rule: name for name, rule in PRE_TOKENIZERS.items()}.values():
            assert "".join(words(pre, text)) == text

    check()
