"""The client libraries of the stores that //bench/peers compares with, where they are installed."""

# Target to header and linker flag.
_LIBRARIES = {
    "hiredis": ("/usr/include/hiredis/hiredis.h", "-lhiredis"),
    "libmemcached": ("/usr/include/libmemcached/memcached.h", "-lmemcached"),
    "rocksdb": ("/usr/include/rocksdb/db.h", "-lrocksdb"),
}

_BUILD = """
cc_library(
    name = "{name}",
    defines = ["KVCACHE_HAVE_{upper}={have}"],
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
)
"""

def _bench_peers_impl(ctx):
    wanted = ctx.os.environ.get("KVCACHE_BENCH_PEERS", "1") != "0"
    build = 'load("@rules_cc//cc:defs.bzl", "cc_library")\n'
    for name, (header, linkopt) in _LIBRARIES.items():
        have = wanted and ctx.path(header).exists
        build += _BUILD.format(
            name = name,
            upper = name.upper(),
            have = 1 if have else 0,
            linkopts = [linkopt] if have else [],
        )
    ctx.file("BUILD", build)

bench_peers = repository_rule(
    doc = """A cc_library for each client library, with KVCACHE_HAVE_NAME=1 defined where its header is installed.

Otherwise the library is empty, with KVCACHE_HAVE_NAME=0, and the benchmark skips its store. So it builds
everywhere. Looked at when Bazel's server starts: run `bazel shutdown` after installing one. With
--repo_env=KVCACHE_BENCH_PEERS=0 none is looked for.""",
    implementation = _bench_peers_impl,
    environ = ["KVCACHE_BENCH_PEERS"],
    local = True,
)
