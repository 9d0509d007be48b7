"""@local_cuda: the CUDA Toolkit of this machine, or a stand-in that says that there is none."""

_BUILD = """load("@rules_cc//cc:defs.bzl", "cc_library")

package(default_visibility = ["//visibility:public"])

# What needs the toolkit is compatible with nothing where there is none: "//..." skips it, and who
# names it reads these names.
constraint_setting(name = "cuda_toolkit")

constraint_value(
    name = "no_cuda_toolkit_12_8_or_newer_found__set_CUDA_PATH",
    constraint_setting = ":cuda_toolkit",
)
"""

_FOUND = """
cc_library(
    name = "cudart",
    srcs = ["{library}/libcudart_static.a"],
    hdrs = glob(["include/**"]),
    includes = ["include"],
    linkopts = ["-ldl", "-lpthread", "-lrt"],
)
"""

_MISSING = """
cc_library(
    name = "cudart",
    target_compatible_with = [":no_cuda_toolkit_12_8_or_newer_found__set_CUDA_PATH"],
)
"""

_DEFS = '''"""Where the toolkit is, and whether there is one."""

CUDA_PATH = "{path}"

def requires_cuda():
    """For target_compatible_with."""
    return {constraints}

def if_cuda(then, otherwise = []):
    return {choice}
'''

# 12.8, as CUDART_VERSION has it: the first that knows sm_100 and batches of copies.
_OLDEST = 12080

def _version(ctx, path):
    header = ctx.path(path + "/include/cuda_runtime_api.h")
    if not header.exists:
        return 0
    for line in ctx.read(header).split("\n"):
        words = [word for word in line.strip().split(" ") if word]
        if len(words) == 3 and words[:2] == ["#define", "CUDART_VERSION"]:
            return int(words[2])
    return 0

def _local_cuda_impl(ctx):
    path = ctx.os.environ.get("CUDA_PATH", "/usr/local/cuda")
    recent = _version(ctx, path) >= _OLDEST
    found = None
    for library in ["lib64", "lib"]:
        if recent and ctx.path(path + "/bin/nvcc").exists and ctx.path(path + "/%s/libcudart_static.a" % library).exists:
            found = library
            ctx.symlink(path + "/include", "include")
            ctx.symlink(path + "/" + library, library)
            break
    ctx.file("BUILD", _BUILD + (_FOUND.format(library = found) if found else _MISSING))
    ctx.file("defs.bzl", _DEFS.format(
        path = path if found else "",
        constraints = "[]" if found else '["@local_cuda//:no_cuda_toolkit_12_8_or_newer_found__set_CUDA_PATH"]',
        choice = "then" if found else "otherwise",
    ))

local_cuda = repository_rule(
    doc = """The toolkit in $CUDA_PATH, or else in /usr/local/cuda, if it is 12.8 or newer.

Looked for when Bazel's server starts: run `bazel shutdown` after installing one.
--repo_env=CUDA_PATH=/nonexistent builds without.""",
    implementation = _local_cuda_impl,
    environ = ["CUDA_PATH"],
    local = True,
)
