"""Dependencies from Debian 12's packages, for Debian 12's Bazel.

Every repository and target has the name that it has in the Bazel Central Registry, so that the same
BUILD files work with newer releases of Bazel, which take their dependencies from MODULE.bazel.
"""

load("//bazel:local_cuda.bzl", "local_cuda")

def _files_impl(ctx):
    for path, content in ctx.attr.files.items():
        ctx.file(path, content)

_files = repository_rule(
    doc = "A repository of the given files.",
    implementation = _files_impl,
    attrs = {"files": attr.string_dict(doc = "Path to content.", mandatory = True)},
)

_HEADERS = """
cc_library(
    name = "headers",
    hdrs = glob(["include/**"]),
    includes = ["include"],
    visibility = ["//visibility:public"],
)
"""

_LIBRARY = """
cc_library(
    name = "{name}",
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
    deps = {deps},
)
"""

def _run(ctx, command):
    result = ctx.execute(command)
    if result.return_code:
        fail("@%s needs Debian's packages %s and pkg-config" % (ctx.name, ctx.attr.apt))
    return result.stdout.strip()

def _linkopts(ctx, libraries):
    if not libraries:
        return []
    if libraries.startswith("-"):
        flags = libraries.replace("{multiarch}", _run(ctx, ["gcc", "-print-multiarch"]))
    else:
        flags = _run(ctx, ["pkg-config", "--libs"] + libraries.split(" "))
    return [flag for flag in flags.split(" ") if flag]

def _debian_package_impl(ctx):
    build_files = {}
    deps = []
    if ctx.attr.headers:
        if not ctx.path(ctx.attr.headers).exists:
            fail("@%s needs Debian's package %s" % (ctx.name, ctx.attr.apt))
        ctx.symlink(ctx.attr.headers, "include/" + ctx.path(ctx.attr.headers).basename)
        build_files[""] = _HEADERS
        deps = ["//:headers"]
    for label, libraries in ctx.attr.targets.items():
        package, _, name = label.partition(":")
        build_files[package] = build_files.get(package, "") + _LIBRARY.format(
            name = name,
            linkopts = _linkopts(ctx, libraries),
            deps = deps,
        )
    for package, targets in build_files.items():
        ctx.file(
            package + "/BUILD" if package else "BUILD",
            'load("@rules_cc//cc:defs.bzl", "cc_library")\n' + targets,
        )

_debian_package = repository_rule(
    doc = "Libraries of an installed Debian package as cc_library targets.",
    implementation = _debian_package_impl,
    attrs = {
        "apt": attr.string(doc = "The package, for error messages.", mandatory = True),
        "headers": attr.string(doc = "Header, or folder of headers, that the compiler does not find by itself."),
        "targets": attr.string_dict(doc = "Label to pkg-config modules, or to linker flags (they start with '-'), or to nothing (headers only).", mandatory = True),
    },
    local = True,
)

# Label to pkg-config module.
_ABSEIL = {
    "absl/algorithm:container": "absl_algorithm_container",
    "absl/base:core_headers": "absl_core_headers",
    "absl/cleanup:cleanup": "absl_cleanup",
    "absl/container:fixed_array": "absl_fixed_array",
    "absl/container:flat_hash_map": "absl_flat_hash_map",
    "absl/container:flat_hash_set": "absl_flat_hash_set",
    "absl/container:inlined_vector": "absl_inlined_vector",
    "absl/flags:flag": "absl_flags",
    "absl/flags:parse": "absl_flags_parse",
    "absl/flags:usage": "absl_flags_usage",
    "absl/functional:any_invocable": "absl_any_invocable",
    "absl/functional:function_ref": "absl_function_ref",
    "absl/hash:hash": "absl_hash",
    "absl/memory:memory": "absl_memory",
    "absl/numeric:bits": "absl_bits",
    "absl/numeric:int128": "absl_int128",
    "absl/random:random": "absl_random_random",
    "absl/status:status": "absl_status",
    "absl/status:statusor": "absl_statusor",
    "absl/strings:str_format": "absl_str_format",
    "absl/strings:strings": "absl_strings",
    "absl/time:time": "absl_time",
    "absl/types:span": "absl_span",
}

def _native_rules(name, package, file, rules):
    """Declares @name//package:file with Bazel's built-in rules, which newer releases load from there."""
    _files(
        name = name,
        files = {
            "BUILD": "",
            package + "/BUILD": "",
            package + "/" + file: "".join(["%s = native.%s\n" % (rule, rule) for rule in rules]),
        },
    )

def debian_dependencies():
    """Declares every external repository from what apt installed."""

    # Debian's package of rules_cc needs a newer Bazel; rules_shell has no package.
    _native_rules("rules_cc", "cc", "defs.bzl", [
        "cc_binary",
        "cc_import",
        "cc_library",
        "cc_test",
        "cc_toolchain",
        "cc_toolchain_suite",
    ])
    _native_rules("rules_shell", "shell", "sh_test.bzl", ["sh_test"])
    native.local_repository(name = "rules_java", path = "/usr/share/bazel/rules/java")
    native.local_repository(name = "rules_proto", path = "/usr/share/bazel/rules/proto")
    native.local_repository(name = "bazel_skylib", path = "/usr/share/bazel/tools/skylib")
    native.local_repository(name = "platforms", path = "/usr/share/bazel/tools/platforms")
    _files(
        name = "remote_coverage_tools",
        files = {"BUILD": 'filegroup(name = "coverage_report_generator", visibility = ["//visibility:public"])'},
    )
    _debian_package(
        name = "abseil-cpp",
        apt = "libabsl-dev",
        targets = _ABSEIL,
    )
    _debian_package(
        name = "boringssl",
        apt = "android-libboringssl-dev",
        headers = "/usr/include/android/openssl",
        targets = {":crypto": "-L/usr/lib/{multiarch}/android -Wl,-rpath,/usr/lib/{multiarch}/android -lcrypto"},
    )
    _debian_package(
        name = "xxhash",
        apt = "libxxhash-dev",
        headers = "/usr/include/xxhash.h",
        targets = {":xxhash": ""},
    )
    _debian_package(
        name = "googletest",
        apt = "libgmock-dev",
        targets = {
            ":gtest": "gmock gtest",
            ":gtest_main": "gmock_main gmock gtest",
        },
    )
    _debian_package(
        name = "google_benchmark",
        apt = "libbenchmark-dev",
        targets = {
            ":benchmark": "benchmark",
            ":benchmark_main": "-lbenchmark_main -lbenchmark -pthread",
        },
    )
    local_cuda(name = "local_cuda")
