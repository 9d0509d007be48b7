#!/usr/bin/env python3
"""Checks what a demo wrote with --json: fields, ranges, and that no logit differs.

Usage: check_demo_json.py {comparison|multilayer} REQUESTS FILE
"""

import json
import sys

errors = []


def expect(condition, message):
    if not condition:
        errors.append(message)


def number(parent, path):
    """The number at a dotted path; reports it and returns NaN if there is none."""
    value = parent
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        errors.append(f"{path}: expected a number, found {value!r}")
        return float("nan")
    return value


def check_rates(result, prefix, most_request_hits):
    for name in ("request_hit_rate", "layer_hit_rate", "token_hit_rate"):
        rate = number(result, prefix + name)
        expect(0 < rate < 1, f"{prefix}{name}: {rate} is not between 0 and 1")
    expect(number(result, prefix + "request_hit_rate") <= most_request_hits + 1e-6,
           f"{prefix}request_hit_rate: more than {most_request_hits}, the first of each prompt must miss")
    mismatches = number(result, prefix + "logits_mismatches")
    expect(mismatches == 0, f"{prefix}logits_mismatches: {mismatches}, expected 0")


def check_speedup(result, name, without, with_cache):
    """That it is the ratio of the two; how large that is depends on what else the machine does."""
    ratio = number(result, without) / number(result, with_cache)
    if name.endswith("throughput"):
        ratio = 1 / ratio
    speedup = number(result, name)
    expect(abs(speedup / ratio - 1) < 0.01, f"{name}: {speedup}, but {without} and {with_cache} give {ratio}")


def check_comparison(result, requests):
    cold = number(result, "cold_requests")
    unique = number(result, "unique_prefixes")
    expect(0 < unique <= cold <= requests, f"cold_requests: {cold} of {unique} prefixes, {requests} requests")
    check_rates(result, "", 1 - cold / requests)
    for side in ("without_cache", "with_cache"):
        p50, p95, p99 = (number(result, f"{side}.p{p}_ms") for p in (50, 95, 99))
        expect(0 < p50 <= p95 <= p99, f"{side}: percentiles {p50}, {p95}, {p99} do not ascend")
        for name in ("mean_ms", "tokens_per_s"):
            expect(number(result, f"{side}.{name}") > 0, f"{side}.{name}: not positive")
    for name, field in (("p50", "p50_ms"), ("mean", "mean_ms"), ("throughput", "tokens_per_s")):
        check_speedup(result, f"speedup.{name}", f"without_cache.{field}", f"with_cache.{field}")


def check_multilayer(result, requests):
    unique = number(result, "unique_prompts")
    expect(0 < unique < requests, f"unique_prompts: {unique} of {requests} requests")
    expect(number(result, "layers") > 0, "layers: not positive")
    for side in ("whole_prompt", "longest_prefix"):
        check_rates(result, side + ".", 1 - unique / requests)
        for name in ("total_ms_without", "total_ms_with"):
            expect(number(result, f"{side}.{name}") > 0, f"{side}.{name}: not positive")
        check_speedup(result, f"{side}.speedup", f"{side}.total_ms_without", f"{side}.total_ms_with")
        number(result, f"{side}.time_saved_s")
    expect(number(result, "longest_prefix.token_hit_rate") >= number(result, "whole_prompt.token_hit_rate"),
           "longest_prefix.token_hit_rate: below that of whole prompts")


def main():
    demo, requests, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    found = number(result, "requests")
    expect(found == requests, f"requests: {found}, expected {requests}")
    {"comparison": check_comparison, "multilayer": check_multilayer}[demo](result, requests)
    for error in errors:
        print(f"{path}: {error}", file=sys.stderr)
    print(f"{demo}: {len(errors)} of its numbers are wrong" if errors else f"{demo}: numbers are plausible")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
