#!/usr/bin/env python3
"""Checks what //bench:peers wrote with --json.

Usage: check_peers_json.py FILE
"""

import json
import sys

FIELDS = {"system", "operation", "payload_bytes", "gb_per_s", "ops_per_s", "p50_us", "p99_us"}
COPIES = {"put_new", "put_full", "get"}


def problems(report):
    results = report["results"]
    payloads = {result["payload_bytes"] for result in results}
    for result in results:
        name = f"{result.get('system')} {result.get('operation')} {result.get('payload_bytes')}"
        if set(result) != FIELDS:
            yield f"{name}: fields {sorted(result)}"
            continue
        if not 0 < result["p50_us"] <= result["p99_us"]:
            yield f"{name}: P50 {result['p50_us']}, P99 {result['p99_us']}"
        gb_per_s = result["ops_per_s"] * result["payload_bytes"] / 1e9
        # Medians of an even number of rounds differ a little in the last digits.
        if not 0.999 < result["gb_per_s"] / gb_per_s < 1.001:
            yield f"{name}: {result['gb_per_s']} GB/s, but {gb_per_s} by operations"
    for system in {"memcpy", "kvcache", "unordered_map"} | {result["system"] for result in results}:
        for payload in payloads:
            operations = [result["operation"] for result in results
                          if result["system"] == system and result["payload_bytes"] == payload]
            if len(set(operations)) != len(operations) or set(operations) - {"get_zero_copy"} != COPIES:
                yield f"{system}, {payload} bytes: operations {operations}"
            if system in report["skipped"]:
                yield f"{system}: skipped, but there"
    if not report["load_average_before"]["1_min"] >= 0:
        yield "no load average"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        found = list(problems(json.load(file)))
    for problem in found:
        print(f"{sys.argv[1]}: {problem}", file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
