#!/usr/bin/env bash
# Collects what is to be run on a GPU, with all that it needs but the driver, in one folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<END
Usage: tools/gpu_bundle.sh FOLDER

Builds the tests and the benchmark for GPUs and collects them in FOLDER, which must not exist, with
every library that they need except for the driver's. Copy it to a machine with an NVIDIA driver
that knows the CUDA Toolkit used here (580 and newer for 13.0), and call FOLDER/run there.
END
}

fail() {
  echo "gpu_bundle.sh: $1" >&2
  exit 1
}

case "${1:-}" in
  --help | -h) usage && exit ;;
  "" | -*) usage >&2 && exit 2 ;;
esac
[[ "$#" -eq 1 ]] || { usage >&2; exit 2; }
folder="$1"
[[ ! -e "${folder}" ]] || fail "'${folder}' exists already"

targets=(//tests/gpu:device_test //bench/gpu:gpu)
bazel build --noshow_progress "${targets[@]}" || fail "cannot build ${targets[*]}"
binaries="$(bazel info --noshow_progress bazel-bin 2>/dev/null)"

mkdir -p "${folder}/lib"
for target in "${targets[@]}"; do
  binary="${target#//}"
  binary="${binary/://}"
  cp -L "${binaries}/${binary}" "${folder}/"
  # The loader comes along: the other machine's C library may be older than this one's.
  ldd "${binaries}/${binary}" | grep -o '/[^ ]*' | while read -r library; do
    cp -Lu "${library}" "${folder}/lib/"
  done
done
# The driver's library asks for these, which must be of the same C library.
libc="$(ldd "${binaries}/tests/gpu/device_test" | grep -o '/[^ ]*/libc\.so\.6')"
for library in libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1; do
  cp -Lu "$(dirname "${libc}")/${library}" "${folder}/lib/"
done

cat >"${folder}/run" <<'END'
#!/bin/sh
# Runs the tests and the benchmark on the GPU of this machine: ./run [FLAGS OF THE BENCHMARK]
# With compute-sanitizer in the PATH the tests run under it too. Results: results/
cd "$(dirname "$0")" || exit 1
umask 077
mkdir -p results
failed=0

drivers=${LD_LIBRARY_PATH:-/usr/local/cuda/compat}:/usr/local/nvidia/lib64:/usr/lib/wsl/lib:/usr/lib/x86_64-linux-gnu:/usr/lib64
# Usage: step BINARY TOOL... Runs it with the flags in ${flags}.
step() {
  binary="$1"
  shift
  echo "=== ${binary} $*" >&2
  "$@" ./lib/ld-linux-x86-64.so.2 --library-path "./lib:${drivers}" "./${binary}" ${flags} ||
    { failed=$((failed + 1)); echo "FAILED: ${binary} $*" >&2; }
}

export KVCACHE_REQUIRE_GPU=1
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv >&2
flags="--gtest_output=json:results/device_test.json"
step device_test env
if command -v compute-sanitizer >/dev/null; then
  flags=""
  step device_test compute-sanitizer --tool memcheck --error-exitcode 1
  step device_test compute-sanitizer --tool racecheck --error-exitcode 1
else
  echo "compute-sanitizer is not in the PATH: the tests did not run under it" >&2
fi
flags="--json=results/gpu.json $*"
step gpu env
echo "${failed} failed"
[ "${failed}" -eq 0 ]
END
chmod 755 "${folder}/run"

megabytes="$(du -sm "${folder}" | cut -f1)"
[[ "${megabytes}" -lt 50 ]] || fail "'${folder}' has ${megabytes} MiB, 50 or more"
echo "gpu_bundle.sh: ${folder}, ${megabytes} MiB; copy it and call ${folder##*/}/run"
