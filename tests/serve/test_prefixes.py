"""What a request need not compute, as an earlier one had the same beginning; over the fake model."""

from helpers.asking import alone, ask, ids


def test_several_are_kept_and_the_longest_is_taken(make_engine):
    engine = make_engine()
    chats = ["Alice tells a story, and ", "Bob has something to say: ", "Alice tells a story. The end"]
    for chat in chats:
        list(engine.submit(ask(chat, max_tokens=5)))
    for chat in chats:
        stream = engine.submit(ask(chat + "more", max_tokens=5))
        tokens = ids(stream)
        assert stream.cached_tokens == len(chat)
        assert tokens == alone(make_engine, ask(chat + "more", max_tokens=5))


def test_of_a_running_sequence_as_well(make_engine):
    engine = make_engine()
    first = engine.generate("a prompt that two have in common|1", max_tokens=9)
    begun = [next(first).id]
    second = engine.generate("a prompt that two have in common|2", max_tokens=9)
    tokens = ids(second)
    assert second.cached_tokens == len("a prompt that two have in common|")
    assert tokens == alone(make_engine, ask("a prompt that two have in common|2", max_tokens=9))
    assert begun + ids(first) == alone(make_engine, ask("a prompt that two have in common|1", max_tokens=9))


def test_a_prompt_is_read_once_for_all_who_ask_it_at_the_same_time(make_engine):
    engine = make_engine(context=2000)
    prompt = "x" * 1200
    streams = [engine.generate(prompt + c, max_tokens=3) for c in "abcd"]
    assert [len(ids(stream)) for stream in streams] == [3] * 4
    assert sum(engine.model.transformer.calls) == 1201 + 3 + 4 * 2
    assert [stream.cached_tokens for stream in streams] == [0, 1200, 1200, 1200]


def test_the_one_not_used_for_longest_is_dropped(make_engine):
    engine = make_engine(kv_room=4 * 250, context=200)  # positions of four bytes
    texts = [c * 90 for c in "abc"]
    cached = []
    for text in (*texts, texts[2], texts[0]):
        stream = engine.generate(text + "!", max_tokens=1)
        list(stream)
        cached.append(stream.cached_tokens)
        assert engine._pool.bytes <= 4 * 250
    assert cached == [0, 0, 0, 90, 0]


def test_only_lengths_that_the_model_can_go_back_to(make_engine):
    engine = make_engine()
    engine.model.transformer.saved = (20,)
    list(engine.generate("a prompt that two have in common|1", max_tokens=3))
    second = engine.generate("a prompt that two have in common|2", max_tokens=3)
    assert ids(second) == alone(make_engine, ask("a prompt that two have in common|2", max_tokens=3))
    assert second.cached_tokens == 20


def test_an_approximate_answer_is_no_prefix_for_others(make_engine):
    engine = make_engine(b"an answer of some length")
    engine._pool._approximate = True
    prompt = "a question of some length|"
    text = "".join(token.text for token in engine.generate(prompt))
    stream = engine.generate(prompt + text + "|", max_tokens=1)
    list(stream)
    assert stream.cached_tokens == len(prompt)
