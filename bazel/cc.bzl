"""The C++ rules of this repository: those of rules_cc, plus include prefix and warnings."""

load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_library", "cc_test")

_WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"]

def _copts(copts):
    # Only in this repository: a compiler of somebody who depends on it may know other warnings.
    return (_WARNINGS if native.repository_name() == "@" else []) + copts

def kvcache_cc_library(name, copts = [], **kwargs):
    """cc_library whose header core/cache/cache.h is included as "kvcache/core/cache/cache.h" by everybody."""
    cc_library(
        name = name,
        copts = _copts(copts),
        include_prefix = "kvcache",
        strip_include_prefix = "/",
        **kwargs
    )

def kvcache_cc_binary(name, copts = [], **kwargs):
    cc_binary(name = name, copts = _copts(copts), **kwargs)

def kvcache_cc_test(name, copts = [], **kwargs):
    cc_test(name = name, copts = _copts(copts), **kwargs)
