#!/usr/bin/env bash
# Runs trace_replay on small traces, and checks what it writes, prints and refuses.
# Usage: trace_replay_test.sh TRACE_REPLAY CHECK_REPORT
set -euo pipefail
replay="$1" check="$2"
scratch="$(mktemp -d)"
trap 'rm -rf "${scratch}"' EXIT

fail() {
  echo "FAILED: $1" >&2
  exit 1
}

# Usage: refuses CODE WORDS FLAG... It says the words, in one line, and writes nothing else.
refuses() {
  local expected="$1" words="$2" code=0
  shift 2
  "${replay}" "$@" >"${scratch}/out" 2>"${scratch}/err" || code=$?
  [[ "${code}" == "${expected}" ]] || fail "$*: exit code ${code}: $(cat "${scratch}/err")"
  grep -qF -- "${words}" "${scratch}/err" || fail "$*: does not say '${words}': $(cat "${scratch}/err")"
  [[ "$(wc -l <"${scratch}/err")" == 1 && ! -s "${scratch}/out" ]] || fail "$*: says too much"
}

# Usage: passes FLAG... Its files are right and its output is plain text.
passes() {
  "${replay}" "$@" --json="${scratch}/r.json" --html="${scratch}/r.html" \
    >"${scratch}/out" 2>"${scratch}/err" || fail "$*: $(cat "${scratch}/err")"
  ! grep -q $'[\r\033]' "${scratch}/out" "${scratch}/err" || fail "$*: control codes in a file"
  python3 "${check}" "${scratch}/r.json" "${scratch}/r.html" 60
}

trace="${scratch}/trace.jsonl"
for i in $(seq 60); do
  chat=$((i % 7)) turn=$((i / 7 + 1))
  ids="0"
  for t in $(seq "${turn}"); do ids="${ids}, $((chat * 100 + t))"; done
  echo "{\"timestamp\": $((i * 1000)), \"input_length\": $((16 * turn + 10)), \"output_length\": 5," \
    "\"hash_ids\": [${ids}]}"
done >"${trace}"

passes --trace "${trace}"
[[ ! -s "${scratch}/err" ]] || fail "wrote to stderr: $(cat "${scratch}/err")"
grep -q '60 requests, .* blocks of 16 tokens; touch order: forward' "${scratch}/out" || fail "no title"
for policy in arc fifo gdsf lfu lru s3fifo ttl; do
  grep -q "^${policy} " "${scratch}/out" || fail "all policies are not there: ${policy}"
done
passes --trace "${trace}" --policy lru --capacity_blocks 5,20,5 --touch_order chain \
  --bytes_per_token 1024 --ttl 10s
[[ "$(grep -c '^lru  ' "${scratch}/out")" == 2 ]] || fail "not one row for each capacity"
grep -q 'GiB' "${scratch}/r.html" || fail "no memory in the page"
passes --trace="${trace}" --policy=arc,lru --capacity_blocks=10 --payload
grep -q 'GB/s' "${scratch}/out" || fail "no speed of the payload"

refuses 2 "--trace=FILE is missing" --policy=lru
refuses 2 "'random' is not one of arc, chain, fifo" --trace="${trace}" --policy=random
refuses 2 "'lru' is there twice" --trace="${trace}" --policy=lru,lru
refuses 2 "'0' is not a number" --trace="${trace}" --capacity_blocks=10,0
refuses 2 "'many'" --trace="${trace}" --capacity_blocks=many
refuses 2 "expected forward or chain" --trace="${trace}" --touch_order=backwards
refuses 2 "--ttl=-1s: expected a duration of more than 0" --trace="${trace}" --ttl=-1s
refuses 2 "--ttl=soon: expected a duration of more than 0" --trace="${trace}" --ttl=soon
refuses 2 "--bytes_per_token" --trace="${trace}" --bytes_per_token=99999999999
refuses 2 "'extra' is no flag" --trace="${trace}" extra
refuses 2 "'unknown'" --trace="${trace}" --unknown=1
refuses 2 "'many'" --trace="${trace}" --tokens_per_block=many
ln "${trace}" "${scratch}/hard.jsonl"
cp "${trace}" "${scratch}/copy.jsonl"
refuses 2 "the file of --trace=${trace}" --trace="${trace}" --json="${scratch}/hard.jsonl"
refuses 2 "the file of --trace=${trace}" --trace="${trace}" --html="${scratch}/./trace.jsonl"
refuses 2 "the file of --json" --trace="${trace}" --json="${scratch}/x" --html="${scratch}/./x"
[[ ! -e "${scratch}/x" ]] || fail "a refused file was opened"
cmp "${trace}" "${scratch}/copy.jsonl" || fail "the trace was overwritten"
refuses 1 "/missing/trace.jsonl" --trace=/missing/trace.jsonl
refuses 1 "/missing/r.json" --trace="${trace}" --json=/missing/r.json

bad="${scratch}/bad.jsonl"
{ head -30 "${trace}"; echo '{"timestamp": 7, "input_length"'; tail -30 "${trace}"; } >"${bad}"
refuses 1 "line 31: expected ':', found the end in column 32" --trace="${bad}" --policy=lru
passes --trace="${bad}" --policy=lru --skip_bad_lines
grep -q '^1 malformed lines were skipped' "${scratch}/out" || fail "skipped lines are not counted"
grep -q 'skipped 1 of 61 lines; the first: .*line 31' "${scratch}/err" || fail "no first bad line"

twice="${scratch}/twice.jsonl"
{ head -3 "${trace}"; echo; echo '{"timestamp": 9, "input_length": 32, "output_length": 1, "hash_ids": [7, 7]}'; } >"${twice}"
refuses 1 "${twice}: line 5: " --trace="${twice}" --touch_order=chain
empty="${scratch}/empty.jsonl"
: >"${empty}"
refuses 1 "no request in 0 lines" --trace="${empty}"

replay_path="$(realpath "${replay}")"
(cd / && BUILD_WORKING_DIRECTORY="${scratch}" "${replay_path}" --trace=trace.jsonl --policy=lru \
  --json=here.json >/dev/null) || fail "a path from where bazel run was called"
[[ -s "${scratch}/here.json" ]] || fail "the file is not where bazel run was called"

code=0
"${replay}" --trace="${trace}" --policy=lru --json="${scratch}/closed.json" >&- 2>"${scratch}/err" || code=$?
[[ "${code}" == 1 ]] || fail "a closed stdout: exit code ${code}"
grep -q 'cannot write to the standard output' "${scratch}/err" || fail "a closed stdout is not told"
python3 -m json.tool "${scratch}/closed.json" >/dev/null || fail "with stdout closed, text goes into the file"
"${replay}" --trace="${trace}" --policy=lru --json="${scratch}/closed.json" <&- >"${scratch}/out" 2>&- \
  || fail "stdin and stderr closed"

"${replay}" --help | grep -q -- --touch_order || fail "--help does not list the flags"
echo "trace_replay passes"
