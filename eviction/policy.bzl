"""The targets of an eviction policy."""

load("//bazel:cc.bzl", "kvcache_cc_library", "kvcache_cc_test")

def eviction_policy(name, create = None, deps = [], test_deps = []):
    """A policy in NAME.h and NAME.cc, its NAME_test.cc, and :register, which gives it its name.

    Whoever links :register has it as MakePolicy("NAME") and --policy=NAME. In a project of your own
    this works as it does here.

    Args:
      name: what --policy says.
      create: the factory that NAME.h declares, without arguments. Default: CreateNamePolicy.
      deps: of NAME.cc, besides the interface.
      test_deps: of NAME_test.cc, besides the policy, the interface and :policy_calls.
    """
    create = create or "Create%sPolicy" % name.capitalize()
    interface = [
        Label("//core/policy:eviction_policy"),
        Label("//core/policy:slot"),
        Label("@abseil-cpp//absl/types:span"),
    ]
    kvcache_cc_library(
        name = name,
        srcs = [name + ".cc"],
        hdrs = [name + ".h"],
        deps = interface + deps,
    )
    native.genrule(
        name = "register_cc",
        srcs = [Label("//eviction:register.cc.in")],
        outs = ["register.cc"],
        cmd = "sed -e 's|@FOLDER@|%s|; s|@NAME@|%s|; s|@CREATE@|%s|' $< > $@" % (
            native.package_name(),
            name,
            create,
        ),
    )
    kvcache_cc_library(
        name = "register",
        srcs = ["register.cc"],
        alwayslink = True,
        deps = [
            ":" + name,
            Label("//core/plugins:registry"),
            Label("@abseil-cpp//absl/status"),
            Label("@abseil-cpp//absl/status:statusor"),
        ],
    )
    kvcache_cc_test(
        name = name + "_test",
        size = "small",
        srcs = [name + "_test.cc"],
        deps = interface + [
            ":" + name,
            Label("//tests/policy_conformance:policy_calls"),
            Label("@googletest//:gtest_main"),
        ] + test_deps,
    )
