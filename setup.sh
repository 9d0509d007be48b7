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

fail() {
  echo "setup.sh: $1" >&2
  exit "${2:-1}"
}

usage() {
  cat <<END
Usage: ./setup.sh [--dev]

Installs with apt, as root or through sudo, the packages that "bazel run //examples:comparison"
and "bazel test //..." need on Debian 12. Does nothing when they are installed already.

  --dev   also what .ci/run needs: ${DEV_PACKAGES[*]}
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

apt_get() {
  local root=()
  if [[ "${EUID}" -ne 0 ]]; then
    command -v sudo >/dev/null || fail "is not root and finds no sudo to install packages with"
    root=(sudo)
  fi
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" \
    </dev/null >/dev/null || fail "'apt-get $1' failed, see above"
}

main() {
  local wanted=("${PACKAGES[@]}") missing=() argument package
  for argument in "$@"; do
    case "${argument}" in
      --dev) wanted+=("${DEV_PACKAGES[@]}") ;;
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
  apt_get update
  apt_get install --yes --no-install-recommends "${missing[@]}"
  echo "setup.sh: done"
}

main "$@"
