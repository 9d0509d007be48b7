"""kvcache_cuda_library: a library of .cu sources, compiled by the toolkit behind @local_cuda."""

load("@local_cuda//:defs.bzl", "CUDA_PATH", "requires_cuda")
load("@rules_cc//cc:defs.bzl", "cc_library")

# Ampere, Hopper and Blackwell as machine code; what comes later compiles the last as it starts.
_ARCHITECTURES = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_100,code=[sm_100,compute_100]",
]

def _cuda_object_impl(ctx):
    contexts = [dep[CcInfo].compilation_context for dep in ctx.attr.deps]
    args = ctx.actions.args()
    args.add_all(["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-Wall,-Wextra"] + _ARCHITECTURES)
    for context in contexts:
        args.add_all(context.includes, before_each = "-I")
        args.add_all(context.quote_includes, before_each = "-I")
        args.add_all(context.system_includes, before_each = "-isystem")
    args.add("-c", ctx.file.src)
    args.add("-o", ctx.outputs.object)
    ctx.actions.run(
        executable = CUDA_PATH + "/bin/nvcc",
        arguments = [args],
        inputs = depset([ctx.file.src], transitive = [context.headers for context in contexts]),
        outputs = [ctx.outputs.object],
        mnemonic = "CudaCompile",
        progress_message = "Compiling %s" % ctx.file.src.short_path,
        use_default_shell_env = True,
    )

_cuda_object = rule(
    implementation = _cuda_object_impl,
    attrs = {
        "src": attr.label(allow_single_file = [".cu"], mandatory = True),
        "object": attr.output(mandatory = True),
        "deps": attr.label_list(providers = [CcInfo]),
    },
)

def kvcache_cuda_library(name, src, hdrs, deps = [], **kwargs):
    """A library of one .cu source. It includes its headers, and is included, as "kvcache/...".

    name + "_hdrs" has the headers alone, without the toolkit.
    """
    cc_library(
        name = name + "_hdrs",
        hdrs = hdrs,
        include_prefix = "kvcache",
        strip_include_prefix = "/",
        visibility = ["//visibility:public"],
    )
    _cuda_object(
        name = name + "_object",
        src = src,
        object = src + ".o",
        target_compatible_with = requires_cuda(),
        deps = deps + [":" + name + "_hdrs"],
    )
    cc_library(
        name = name,
        srcs = [src + ".o"],
        target_compatible_with = requires_cuda(),
        deps = deps + [":" + name + "_hdrs", "@local_cuda//:cudart"],
        **kwargs
    )
