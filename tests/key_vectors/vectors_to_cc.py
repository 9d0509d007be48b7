#!/usr/bin/env python3
"""Prints vectors.json as C++ initializers, so that the test of the C++ keys needs no JSON parser."""

import json
import sys


def cc(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f".{name} = {cc(x)}" for name, x in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(cc(x) for x in value) + "}"
    if isinstance(value, str):
        return '"' + "".join(f"\\{byte:03o}" for byte in value.encode()) + '"s'
    return f"{value}ll"


with open(sys.argv[1], encoding="utf-8") as file:
    print(",\n".join(cc(vector) for vector in json.load(file)["vectors"]))
