#!/usr/bin/env python3
"""Recomputes the keys of vectors.json by docs/key_spec.md: check_vectors.py vectors.json"""

import hashlib
import json
import sys

SHARD = ("first_layer", "num_layers", "total_layers",
         "first_kv_head", "num_kv_heads", "total_kv_heads")


def sha256(*pieces):
    return hashlib.sha256(b"".join(pieces)).digest()


def integers(numbers, size=4, signed=False):
    return b"".join(n.to_bytes(size, "little", signed=signed) for n in numbers)


def frame(tag, data=b""):
    return integers([tag], 1) + integers([len(data)], 8) + data


def block_extra(items, first, size):
    """The extra of a block of `size` tokens from `first` on: the items that begin in it."""
    return b"".join(integers([item["first_token"] - first, item["tokens"]]) +
                    frame(18, bytes.fromhex(item["digest"]))
                    for item in items if first <= item["first_token"] < first + size)


def keys(vector):
    """The root, then the key of the text or of each block of tokens."""
    layout = vector["layout"]
    fields = [vector[name].encode() for name in ("model", "revision", "adapter", "tenant")]
    fields.append(integers(vector["shard"][name] for name in SHARD))
    fields.append(integers((layout[name] for name in ("dtype", "kind", "order")), 1) +
                  integers(layout[name] for name in ("kv_heads", "head_dim", "scale_bytes_per_token")))
    fields.append(integers([vector["group"]]))
    key = sha256(b"kvcache/1", *(frame(tag, field) for tag, field in enumerate(fields, 1)))
    yield key
    extras = [bytes.fromhex(extra) for extra in vector.get("extras", [])]
    if "text" in vector:
        yield sha256(key, b"T", frame(16, vector["text"].encode()), frame(17, *extras))
    tokens, size = vector.get("tokens", []), vector.get("tokens_per_block", 1)
    for i in range(0, len(tokens), size):
        block = tokens[i:i + size]
        extra = extras[i // size] if extras else block_extra(vector.get("items", []), i, len(block))
        key = sha256(key, b"B", integers([len(block)]), integers(block, signed=True),
                     frame(17, extra))
        yield key


def main(path):
    with open(path, encoding="utf-8") as file:
        vectors = json.load(file)["vectors"]
    for vector in vectors:
        computed = [key.hex() for key in keys(vector)]
        if computed != vector["keys"]:
            sys.exit(f"FAILED: {vector['name']}: keys are {vector['keys']}, computed {computed}")
    print(f"{len(vectors)} vectors agree")


if __name__ == "__main__":
    main(sys.argv[1])
