#!/usr/bin/env bash
# Installs with apt what it takes to build, test and run this project on Debian 12.
set -euo pipefail

readonly PACKAGES=(
  android-libboringssl-dev
  bazel-bootstrap
  bazel-platforms
  bazel-rules-java
  bazel-rules-proto
  bazel-skylib
  g++
  libabsl-dev
  libbenchmark-dev
  libgmock-dev
  libgtest-dev
  libxxhash-dev
  pkg-config
  python3
)
readonly DEV_PACKAGES=(
  clang
  clang-format
  git
  libclang-rt-14-dev
  valgrind
)
readonly BENCH_PACKAGES=(
  libhiredis-dev
  libmemcached-dev
  librocksdb-dev
  memcached
  python3-matplotlib
  redis-server
)
# Those of them that Debian starts on a TCP port when they are installed, and at every boot.
readonly DAEMONS=(
  memcached
  redis-server
)
readonly START_POLICY=/usr/sbin/policy-rc.d

fail() {
  echo "setup.sh: $1" >&2
  exit "${2:-1}"
}

usage() {
  cat <<END
Usage: ./setup.sh [--dev] [--bench]

Installs with apt, as root or through sudo, the packages that "bazel run //examples:comparison"
and "bazel test //..." need on Debian 12. Does nothing when they are installed already.

  --dev   also what .ci/run needs: ${DEV_PACKAGES[*]}
  --bench what "bazel run //bench:peers" compares with, and what draws its chart:
          ${BENCH_PACKAGES[*]}
          Their system services are neither started nor left enabled: the benchmark runs servers
          of its own. Services of those that are installed already stay as they are.
  --help  this text
END
}

installed() {
  [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

check_system() {
  local system="an unknown system"
  if [[ -r /etc/os-release ]]; then
    system="$(. /etc/os-release && echo "${ID:-unknown} ${VERSION_ID:-}")"
  fi
  [[ "${system}" == "debian 12" ]] ||
    fail "knows Debian 12 only, and this is ${system}; elsewhere install Bazel 8 (bazelisk) instead"
}

as_root() {
  local root=()
  if [[ "${EUID}" -ne 0 ]]; then
    command -v sudo >/dev/null || fail "is not root and finds no sudo to install packages with"
    root=(sudo)
  fi
  "${root[@]}" "$@"
}

apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" \
    </dev/null >/dev/null || fail "'apt-get $1' failed, see above"
}

# Lets no package start its service from here to the end of this script. Where there is such a
# policy already, as in containers, it decides.
forbid_starts() {
  [[ ! -e "${START_POLICY}" ]] || return 0
  trap 'as_root rm -f "${START_POLICY}"' EXIT
  printf '#!/bin/sh\nexit 101\n' | as_root tee "${START_POLICY}" >/dev/null
  as_root chmod 755 "${START_POLICY}"
}

main() {
  local wanted=("${PACKAGES[@]}") missing=() new_daemons=() argument package
  for argument in "$@"; do
    case "${argument}" in
      --dev) wanted+=("${DEV_PACKAGES[@]}") ;;
      --bench) wanted+=("${BENCH_PACKAGES[@]}") ;;
      --help | -h) usage && exit ;;
      *) fail "unknown argument '${argument}', see ./setup.sh --help" 2 ;;
    esac
  done
  check_system

  for package in "${wanted[@]}"; do
    installed "${package}" || missing+=("${package}")
  done
  if [[ "${#missing[@]}" -eq 0 ]]; then
    echo "setup.sh: all ${#wanted[@]} packages are installed"
    return
  fi
  echo "setup.sh: installing ${missing[*]}"
  for package in "${DAEMONS[@]}"; do
    [[ " ${missing[*]} " != *" ${package} "* ]] || new_daemons+=("${package}")
  done
  [[ "${#new_daemons[@]}" -eq 0 ]] || forbid_starts
  apt_get update
  apt_get install --yes --no-install-recommends "${missing[@]}"
  for package in "${new_daemons[@]}"; do
    as_root update-rc.d "${package}" disable || fail "cannot disable the service ${package}"
  done
  if [[ " ${missing[*]} " =~ \ lib(hiredis|memcached|rocksdb)-dev\  ]]; then
    echo "setup.sh: run 'bazel shutdown' once, so that Bazel looks for the new libraries"
  fi
  echo "setup.sh: done"
}

main "$@"
