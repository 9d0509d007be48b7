#!/usr/bin/env bash
# Builds and runs this project, and proves that it links nothing of kvcache that it did not ask for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
trap 'bazel shutdown' EXIT

fail() {
  echo "check.sh: $1" >&2
  exit 1
}

bazel run --noshow_progress //:main

packages="$(bazel query --noshow_progress 'deps(//:main)' --output=package |
  sed -nE 's|^@+kvcache[^/]*//||p' | sort -u | xargs)"
[[ "${packages}" == "backends/cpu_ram backends/host_memory core/advice core/base core/cache core/copy core/key core/policy core/stats core/storage core/table eviction eviction/lru" ]] ||
  fail "//:main depends on these packages of kvcache: ${packages}"

# The first pattern proves that the second one would find what it looks for.
symbols="$(nm --demangle bazel-bin/main)"
grep -q 'kvcache::CreateLruPolicy' <<<"${symbols}" || fail "no LRU policy in bazel-bin/main"
if grep -E 'kvcache::Create|cuda' <<<"${symbols}" | grep -vE 'kvcache::Create(LruPolicy|CpuRamBackend)'; then
  fail "these symbols are in bazel-bin/main"
fi
echo "check.sh: builds, runs, and links only what it asked for"
