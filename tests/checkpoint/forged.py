"""Manifests with any content and a digest that is right."""

import xxhash

from yaoki.strict_json import encode


def signed(content: object) -> bytes:
    """`content` with a digest that is right, so that only the form can be wrong."""
    assert isinstance(content, dict)
    content = {key: value for key, value in content.items() if key != "digest"}
    return with_digest(encode(content))


def with_digest(body: bytes) -> bytes:
    return b'{"digest":"%s",%s' % (xxhash.xxh3_128_hexdigest(body).encode(), body[1:])
