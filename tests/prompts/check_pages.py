#!/usr/bin/env python3
"""Gathers and scatters pages by their definition in core/pages/paged_kv.h: check_pages.py pages_to_json"""

import json
import subprocess
import sys


def places(case):
    """Where each byte of a part is in the memory of the pages, and its token, in their order."""
    row = case["row_bytes"]
    for tensor in (0, case["v_at"]):
        if tensor is None:  # a latent layout has no V
            continue
        for token in range(case["first"], case["first"] + case["count"]):
            page, in_page = divmod(token, case["page_tokens"])
            for head in range(case["heads"]):
                if case["head_major"]:
                    index = head * case["page_tokens"] + in_page
                else:
                    index = in_page * case["heads"] + head
                begin = tensor + case["table"][page] * case["page_stride"] + index * row
                for place in range(begin, begin + row):
                    yield place, token


def check(case):
    memory, gathered, part, scattered = (
        bytearray.fromhex(case[name]) for name in ("memory", "gathered", "part", "scattered"))
    order = list(places(case))
    if bytes(memory[place] for place, _ in order) != gathered:
        return "gathered other bytes"
    for (place, token), byte in zip(order, part):
        if token >= case["first"] + case["skip"]:
            memory[place] = byte
    return None if memory == scattered else "scattered other bytes"


def main():
    cases = json.loads(subprocess.run(sys.argv[1:], check=True, capture_output=True).stdout)
    failures = 0
    for case in cases:
        failure = check(case)
        if failure:
            failures += 1
            print(failure, {name: value for name, value in case.items()
                            if name not in ("memory", "gathered", "part", "scattered")})
    print(f"{len(cases)} layouts of pages, {failures} wrong")
    return 1 if failures or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
