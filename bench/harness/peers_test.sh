#!/usr/bin/env bash
# Runs the comparison, small, and checks what it writes, refuses and leaves behind.
# Usage: peers_test.sh PEERS CHECK_PEERS_JSON
set -euo pipefail
peers="$1" check="$2"
scratch="$(mktemp -d)"
running=""  # a benchmark that nobody has waited for
trap '[[ -z "${running}" ]] || kill -KILL "${running}" || true; rm -rf "${scratch}"' EXIT
# The benchmark's folders; short enough for a socket.
export TMPDIR="${scratch}"

fail() {
  echo "FAILED: $1" >&2
  exit 1
}

# Usage: refuses WORDS FLAG... It says the words, in one line, and does not run.
refuses() {
  local words="$1" code=0
  shift
  "${peers}" "$@" >"${scratch}/out" 2>"${scratch}/err" || code=$?
  [[ "${code}" == 1 || "${code}" == 2 ]] || fail "$*: exit code ${code}"
  grep -qF -- "${words}" "${scratch}/err" || fail "$*: does not say '${words}': $(cat "${scratch}/err")"
  [[ "$(wc -l <"${scratch}/err")" == 1 && ! -s "${scratch}/out" ]] || fail "$*: says too much"
}

# Whether a server runs whose command names the folder.
servers_run() {
  grep -lqsF "${scratch}/kvcache-bench" /proc/[0-9]*/cmdline
}

# Usage: until_true COMMAND... For at most a minute.
until_true() {
  for _ in {1..600}; do
    ! "$@" || return 0
    sleep 0.1
  done
  fail "still not: $*"
}

no_servers() { ! servers_run; }

# Usage: ends_with CODE. Waits for the benchmark that runs; nothing of it is left.
ends_with() {
  local pid="${running}" code=0
  wait "${pid}" || code=$?
  running=""
  [[ "${code}" == "$1" ]] || fail "exit code ${code}: $(cat "${scratch}/err")"
  is_clean "${pid}"
}

# Usage: is_clean PID
is_clean() {
  ! servers_run || fail "a server survives"
  ! compgen -G "${scratch}/kvcache-bench-*" || fail "a folder survives"
  ! compgen -G "/dev/shm/kvcache-bench-$1-*" || fail "a folder survives in /dev/shm"
}

"${peers}" --payloads=64KiB,1MiB --working_set_mb=64 --rounds=2 --json="${scratch}/json" \
  >"${scratch}/out" 2>"${scratch}/err" &
running=$!
ends_with 0
[[ ! -s "${scratch}/err" ]] || fail "writes to stderr: $(cat "${scratch}/err")"
grep -q '^kvcache .* 64 KiB ' "${scratch}/out" || fail "the table has no kvcache: $(cat "${scratch}/out")"
python3 "${check}" "${scratch}/json"
servers=yes
! grep -q '^redis: skipped' "${scratch}/out" || ! grep -q '^memcached: skipped' "${scratch}/out" || servers=no

refuses "128KiB, 1MiB or 4MiB" --payloads=128KiB,huge
refuses "--payloads=1MiB,1024KiB" --payloads=1MiB,1024KiB
refuses "known are memcpy, streaming_stores, kvcache, kvcache_no_checksums, unordered_map, redis, memcached, rocksdb" --systems=floppy
refuses "--rounds=0" --rounds=0
refuses "expected from 128 to" --working_set_mb=127
refuses "--payloads, --rounds, --systems, --working_set_mb" --unknown=1
refuses "'many'" --rounds=many
refuses "'twelve'" twelve
refuses "/missing/x.json" --json=/missing/x.json
"${peers}" --help | grep -q -- --working_set_mb || fail "--help does not list the flags"

# The rest needs a server.
if [[ "${servers}" == no ]]; then
  echo "passes; neither redis nor memcached is installed"
  exit
fi

# Usage: start. Until a server runs.
start() {
  "${peers}" --systems=redis,memcached --working_set_mb=128 --payloads=128KiB --rounds=1000 \
    >"${scratch}/out" 2>"${scratch}/err" &
  running=$!
  until_true servers_run
}

for signal in INT TERM HUP; do
  start
  kill -"${signal}" "${running}"
  ends_with 130
done

# Nobody can clean up after this one, but the servers go all the same.
start
kill -KILL "${running}"
wait "${running}" 2>/dev/null || true
running=""
until_true no_servers
echo "passes"
