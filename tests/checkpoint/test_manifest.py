"""The manifest's bytes: each is covered, and nothing but an intact manifest is ever accepted."""

import contextlib
import copy
import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaoki.checkpoint.manifest import (
    FORMAT_VERSION,
    FileEntry,
    Manifest,
    PartEntry,
    Scope,
    ShardEntry,
    TensorEntry,
    parse_manifest,
)
from yaoki.errors import CorruptCheckpointError
from yaoki.strict_json import FormatError, encode_state, parse

from .forged import signed, with_digest

WEIGHTS = "policy-00000-of-00001.safetensors"
MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    step=120,
    created_unix_s=1763790000.25,
    attempt=1,
    run_id="käse-\U0001f9c0",
    parent=None,
    config_digest="c1",
    dataset_digest="d1",
    environment={"torch": "2.13.0", "num_threads": 1, "tf32": False, "gpu": None, "ratio": 1.5},
    world_size=1,
    parts=(PartEntry("policy", Scope.SHARDED, False), PartEntry("rng", Scope.PER_RANK, True)),
    files=(FileEntry(WEIGHTS, 4108, 4096, "0" * 64), FileEntry("state.json", 11, 4096, "f" * 32)),
    tensors=(
        TensorEntry("policy", "embed", None, "F32", (3, 1), (ShardEntry(WEIGHTS, (0, 0), (3, 1)),), None),
        TensorEntry("policy", "head", None, "F32", (3, 1), (), "embed"),
        TensorEntry("rng", "torch", 0, "U8", (), (ShardEntry(WEIGHTS, (), ()),), None),
    ),
)
DATA = MANIFEST.to_bytes()


def refusal(data: bytes) -> str:
    with pytest.raises(CorruptCheckpointError) as caught:
        parse_manifest(data, "RUN/manifest.json")
    assert caught.value.message.startswith("RUN/manifest.json: ")
    return caught.value.message


def test_round_trip_is_the_identity_both_ways() -> None:
    assert parse_manifest(DATA, "m") == MANIFEST
    assert parse_manifest(DATA, "m").to_bytes() == DATA
    assert signed(json.loads(DATA)) == DATA


def test_a_change_of_any_byte_is_seen() -> None:
    randomness = random.Random(0)
    for position in range(len(DATA)):
        for flip in (1 << randomness.randrange(8), randomness.randrange(1, 256)):
            refusal(DATA[:position] + bytes([DATA[position] ^ flip]) + DATA[position + 1 :])


def test_every_shortened_or_lengthened_manifest_is_refused() -> None:
    for length in range(len(DATA)):
        refusal(DATA[:length])
    for position in range(len(DATA) + 1):
        refusal(DATA[:position] + b" " + DATA[position:])
    refusal(DATA + b"\n")
    refusal(DATA + DATA)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"null\n", "Input should be an object, found None"),
        (b"[" * 100_000, "not JSON"),
        (b"{}\n", "format_version: Field required"),
        (b'{"format_version":' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"format_version":3}\n', "does not match its own digest"),
        (b'{"digest":[],"format_version":3}\n', "does not match its own digest"),
        (b'{"digest":"%s","format_version":3}\n' % (b"0" * 32), "does not match its own digest"),
    ],
)
def test_garbage_is_refused_with_what_is_wrong(data: bytes, reason: str) -> None:
    assert reason in refusal(data)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"step":120', b'"step": 120', "its JSON is not canonical"),
        (b'"step":120', b'"step":120,"step":120', "its JSON is not canonical"),
        (b'"step":120', b'"step":119,"step":120', "its JSON is not canonical"),
        (b'"step":120', b'"step":1e999', "step: Input should be a valid integer"),
        (b'"created_unix_s":1763790000.25', b'"created_unix_s":1763790000', "its JSON is not canonical"),
        (b'"created_unix_s":1763790000.25', b'"created_unix_s":1.76379000025e9', "its JSON is not canonical"),
        (b'"created_unix_s":1763790000.25', b'"created_unix_s":NaN', "cannot be written as JSON"),
        (b'"created_unix_s":1763790000.25', b'"created_unix_s":-Infinity', "cannot be written as JSON"),
        (b'"created_unix_s":1763790000.25', b'"created_unix_s":1e999', "cannot be written as JSON"),
        (b"k\\u00e4se", "käse".encode(), "its JSON is not canonical"),
        (b"k\\u00e4se", b"k\\ud800se", "not JSON"),
        (b'"attempt":1', b'"attempt":' + b"[" * 100_000, "not JSON"),
    ],
)
def test_only_the_canonical_bytes_of_a_manifest_are_accepted(old: bytes, new: bytes, reason: str) -> None:
    body = b"{" + DATA[len('{"digest":"",') + 32 :]
    assert with_digest(body) == DATA
    assert body.count(old) == 1
    assert reason in refusal(with_digest(body.replace(old, new)))


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_but_the_refusal(data: bytes) -> None:
    refusal(data)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["embed", "head", "policy", "rng", "state.json", "manifest.json", "..", "a/b", "F32"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=250)
@given(st.data())
def test_a_signed_manifest_of_wrong_form_is_refused_or_means_what_it_says(data: st.DataObject) -> None:
    content = json.loads(DATA)
    place: dict | list = content
    while True:  # walk to a random place, then put any JSON there
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        child = place[key]
        if isinstance(child, dict | list) and child and data.draw(st.booleans()):
            place = child
            continue
        place[key] = data.draw(JSON_VALUES)
        break
    forged = signed(content)
    with contextlib.suppress(CorruptCheckpointError):
        assert parse_manifest(forged, "m").to_bytes() == forged


def changed(path: tuple[str | int, ...], value: object) -> bytes:
    content = copy.deepcopy(json.loads(DATA))
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return signed(content)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("format_version",), 2, "format version 2, this version of Yaoki reads version 3"),
        (("format_version",), None, "format_version: Input should be a valid integer, found None"),
        (("step",), True, "step: Input should be a valid integer, found True"),
        (("step",), 120.0, "step: Input should be a valid integer, found 120.0"),
        (("step",), "1", "step: Input should be a valid integer, found '1'"),
        (("step",), -1, "step is -1"),
        (("created_unix_s",), 1, "its JSON is not canonical"),
        (("created_unix_s",), "1", "created_unix_s: Input should be a valid number, found '1'"),
        (("parent",), 3, "parent: Input should be a valid string, found 3"),
        (("surprise",), 3, "surprise: Unexpected keyword argument, found 3"),
        (("parts", 0, "surprise"), 3, "parts[0].surprise: Unexpected keyword argument"),
        (("tensors", 0, "shards", 0, "surprise"), 3, "tensors[0].shards[0].surprise: Unexpected"),
        (("environment", "torch"), [], "environment.torch"),
        (("world_size",), 0, "world_size is 0"),
        (("parts", 0), {"name": "x"}, "parts[0].scope: Field required"),
        (("parts", 0, "scope"), "everywhere", "parts[0].scope: Input should be 'sharded'"),
        (("parts", 0, "has_json"), 0, "parts[0].has_json: Input should be a valid boolean, found 0"),
        (("parts", 1, "name"), "policy", "the part 'policy' is listed 2 times"),
        (("files", 0, "name"), "../state.json", "'../state.json' is not a plain file name"),
        (("files", 0, "name"), "/etc/passwd", "'/etc/passwd' is not a plain file name"),
        (("files", 0, "name"), "..", "'..' is not a plain file name"),
        (("files", 0, "name"), "manifest.json", "is the manifest itself"),
        (("files", 0, "name"), "state.json", "the file 'state.json' is listed 2 times"),
        (("files", 0, "chunk_bytes"), 2048, "has chunks of 2048 bytes"),
        (("files", 0, "chunk_bytes"), 4097, "has chunks of 4097 bytes"),
        (("files", 0, "chunk_bytes"), 1 << 24, "has chunks of 16777216 bytes"),
        (("files", 0, "chunk_bytes"), 8192, "has no proper digests"),
        (
            ("files", 0, "xxh3_128"),
            None,
            "files[0].xxh3_128: Input should be a valid string, found None",
        ),
        (("files", 0, "xxh3_128"), "", "has no proper digests"),
        (("files", 0, "xxh3_128"), "0" * 96, "has no proper digests"),
        (("files", 0, "xxh3_128"), "0" * 63 + "A", "has no proper digests"),
        (("files", 0, "size_bytes"), -1, "has size -1"),
        (("files", 1, "name"), "other.json", "does not list state.json"),
        (("tensors", 0, "part"), "critic", "there is no such part"),
        (("tensors", 0, "rank"), 0, "wrong rank 0"),
        (("tensors", 2, "rank"), 1, "wrong rank 1"),
        (("tensors", 0, "shards"), [], "neither shards nor alias_of"),
        (("tensors", 0, "shards", 0, "file"), "x", "'x' is not a listed file"),
        (("tensors", 0, "shards", 0, "offsets"), [1, 0], "a shard lies outside the tensor"),
        (("tensors", 0, "shards", 0, "shape"), [2, 1], "its shards do not cover it"),
        (
            ("tensors", 0, "shards"),
            [
                {"file": WEIGHTS, "offsets": [0, 0], "shape": [2, 1]},
                {"file": WEIGHTS, "offsets": [1, 0], "shape": [1, 1]},
            ],
            "its shards overlap or leave a gap",
        ),
        (("tensors", 0, "global_shape"), [-3, -1], "negative size"),
        (("tensors", 1, "alias_of"), "head", "not a stored tensor of its dtype and shape"),
        (("tensors", 1, "global_shape"), [3], "not a stored tensor of its dtype and shape"),
        (("tensors", 1, "name"), "embed", "a tensor is listed twice"),
    ],
)
def test_each_rule_of_the_form_is_checked(path: tuple[str | int, ...], value: object, reason: str) -> None:
    assert reason in refusal(changed(path, value))


@pytest.mark.parametrize("name", ["step", "parent", "files", "environment"])
def test_no_key_may_be_missing(name: str) -> None:
    content = json.loads(DATA)
    del content[name]
    assert f"{name}: Field required" in refusal(signed(content))


def test_an_older_version_is_named_whatever_its_form() -> None:
    """Version 2 had its digest elsewhere."""
    assert "format version 2" in refusal(b'{"attempt":1,"digest":"%s","format_version":2}\n' % (b"0" * 32))


def test_an_invalid_manifest_cannot_be_written() -> None:
    with pytest.raises(FormatError, match="step is -1"):
        replace(MANIFEST, step=-1).to_bytes()
    with pytest.raises(FormatError, match="cannot be written as JSON"):
        replace(MANIFEST, environment={"x": float("nan")}).to_bytes()
    with pytest.raises(FormatError, match=r"run_id: Input should be a valid string, found 3"):
        replace(MANIFEST, run_id=3).to_bytes()  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="not JSON"):
        replace(MANIFEST, run_id="\ud800").to_bytes()


@pytest.mark.parametrize(
    "value", [(1, 2), {1: 2}, {"a": {True: 1}}, float("nan"), [float("-inf")], object(), {"x": {1, 2}}]
)
def test_state_that_json_would_change_is_refused(value: object) -> None:
    with pytest.raises(FormatError):
        encode_state(value)  # type: ignore[arg-type]


@given(JSON_VALUES | st.text())
def test_state_comes_back_in_its_own_order(value: object) -> None:
    assert repr(parse(encode_state(value))) == repr(value)  # type: ignore[arg-type]
