"""Profiles as files: what is saved comes back, and nothing else passes for a profile."""

import json
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hotset.activations.profile import ActivationProfile, load_profile, read_arrays, write_arrays
from hotset.core.config import Activation
from hotset.core.errors import HotsetError


def floats(shape, low=0.0, high=1.0):
    return arrays(np.float32, shape, elements=st.floats(low, high, width=32))


@st.composite
def profiles(draw):
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    return ActivationProfile(
        model=draw(st.text(max_size=8)),
        activation=draw(st.sampled_from(Activation)),
        corpus=draw(st.text(max_size=8)),
        corpus_hash=draw(st.sampled_from(["", "0f" * 32])),
        tokens=draw(st.integers(0, 1 << 40)),
        window=draw(st.integers(0, 4096)),
        skipped=draw(st.integers(0, 4)),
        fingerprint=draw(floats((shape[0], 64), -9, 9)),
        levels=draw(floats(shape[0], 0, 9)),
        frequency=draw(floats(shape)),
        magnitude=draw(floats(shape, 0, 2.0**99)),
        halves=draw(st.none() | floats((2, *shape))),
    )


def some_profile(**changes):
    shape = (2, 5)
    rng = np.random.default_rng(0)
    options = {
        "model": "m.gguf",
        "activation": Activation.RELU,
        "corpus": "c.txt",
        "corpus_hash": "ab" * 32,
        "tokens": 100,
        "window": 10,
        "skipped": 2,
        "fingerprint": rng.random((2, 64), np.float32),
        "levels": np.zeros(2, np.float32),
        "frequency": rng.random(shape, np.float32),
        "magnitude": rng.random(shape, np.float32),
        "halves": rng.random((2, *shape), np.float32),
    }
    return ActivationProfile(**options | changes)


@given(profiles())
@settings(max_examples=30, deadline=None)
def test_round_trip(tmp_path_factory, profile):
    path = tmp_path_factory.mktemp("profiles") / "p.npz"
    profile.save(path)
    loaded = load_profile(path)
    for field in fields(profile):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(profile, field.name))
    assert loaded.model_hash == profile.model_hash
    data = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == data
    assert [other.name for other in path.parent.iterdir()] == ["p.npz"]
    with np.load(path) as file:
        np.testing.assert_array_equal(file["frequency"], profile.frequency)


def test_order_is_by_frequency_then_magnitude_then_place():
    made = some_profile(
        frequency=np.array([[0.5, 0.9, 0.5, 0.1, 0.5]] * 2, np.float32),
        magnitude=np.array([[1, 0, 3, 9, 1], [0, 0, 0, 0, 0]], np.float32),
    )
    assert made.order.tolist() == [[1, 2, 0, 4, 3], [1, 0, 2, 4, 3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frequency": np.zeros(3, np.float32)}, "frequency: expected layers x neurons"),
        ({"frequency": np.full((2, 5), 1.5, np.float32)}, "frequency: expected finite numbers from 0 to 1"),
        ({"magnitude": np.full((2, 5), np.nan, np.float32)}, "magnitude: expected finite"),
        ({"magnitude": np.zeros((2, 4), np.float32)}, r"magnitude: expected float32 \[2, 5\], found"),
        ({"levels": np.zeros(2)}, "levels: expected float32"),
        ({"halves": np.zeros((1, 2, 5), np.float32)}, "halves: expected"),
        ({"tokens": -1}, "tokens: expected 0 or more"),
    ],
)
def test_arrays_that_do_not_fit(changes, message):
    with pytest.raises(HotsetError, match=message):
        some_profile(**changes)


def rewritten(path, change):
    contents = read_arrays(path)
    meta = json.loads(str(contents["meta"]))
    change(meta, contents)
    contents["meta"] = np.array(json.dumps(meta)) if meta else np.array(["no", "JSON"])
    write_arrays(path, contents)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta, contents: meta.update(schema=2), "schema: expected 1, found 2"),
        (lambda meta, contents: meta.pop("schema"), "no activation profile"),
        (lambda meta, contents: meta.pop("model"), "no activation profile"),
        (lambda meta, contents: meta.clear(), "no activation profile"),
        (lambda meta, contents: meta.update(tokens="many"), "tokens: expected"),
        (lambda meta, contents: meta.update(activation="swoosh"), "no activation profile"),
        (lambda meta, contents: meta.update(unheard="of"), "no activation profile"),
        (lambda meta, contents: contents.pop("levels"), "no activation profile"),
        (lambda meta, contents: contents.update(fingerprint=contents["fingerprint"] + 1), "is damaged"),
        (lambda meta, contents: contents.update(frequency=contents["frequency"][:, 1:]), "magnitude: expect"),
        (lambda meta, contents: contents.update(frequency=contents["frequency"] * np.inf), "frequency: exp"),
    ],
)
def test_contents_that_are_wrong(tmp_path, change, message):
    path = tmp_path / "p.npz"
    some_profile().save(path)
    rewritten(path, change)
    with pytest.raises(HotsetError, match=message) as raised:
        load_profile(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_files(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("profiles") / "p.npz"
    some_profile().save(path)
    contents = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del contents[data.draw(st.integers(0, len(contents) - 1)) :]
    else:
        contents[data.draw(st.integers(0, len(contents) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(contents)
    try:
        loaded = load_profile(path)  # a flipped bit in a zip's directory may mean nothing
    except HotsetError as error:
        assert str(path) in str(error)
    else:
        np.testing.assert_array_equal(loaded.frequency, some_profile().frequency)


def test_what_is_no_profile(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(HotsetError, match=r"cannot be read: No such file"):
        load_profile(path)
    with pytest.raises(HotsetError, match=r"cannot be read: Is a directory"):
        load_profile(tmp_path)
    for data in (b"", b"text", b"GGUF" + bytes(1000)):
        path.write_bytes(data)
        with pytest.raises(HotsetError, match="is no activation profile"):
            load_profile(path)
    np.savez(path, frequency=np.array([{}], object))
    with pytest.raises(HotsetError, match="is no activation profile"):
        load_profile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.npy", b"nonsense")
    with pytest.raises(HotsetError, match="is no activation profile"):
        load_profile(path)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(HotsetError, match="cannot be written: there is no directory"):
        some_profile().save(tmp_path / "missing" / "p.npz")
    path = tmp_path / "p.npz"
    some_profile().save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Object arrays"):
        write_arrays(path, {"a": np.zeros(3), "b": np.array([{}], object)})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.npz"]
    assert replace(some_profile(), tokens=5).tokens == 5
