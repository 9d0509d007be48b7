#!/usr/bin/env bash
# Runs both demos, small, and checks what they write, print and refuse.
# Usage: demos_test.sh COMPARISON MULTILAYER CHECK_DEMO_JSON
set -euo pipefail
comparison="$1" multilayer="$2" check="$3"
scratch="$(mktemp -d)"
trap 'rm -rf "${scratch}"' EXIT
umask 0

fail() {
  echo "FAILED: $1" >&2
  exit 1
}

# Usage: passes NAME REQUESTS PROGRAM FLAG... Its numbers are right and its output is plain text.
passes() {
  local name="$1" requests="$2" json="${scratch}/$1.json"
  "${@:3}" --requests="${requests}" --layers=2 --json="${json}" >"${scratch}/out" 2>"${scratch}/err"
  [[ ! -s "${scratch}/err" ]] || fail "${name} wrote to stderr: $(cat "${scratch}/err")"
  ! grep -q $'[\r\033]' "${scratch}/out" || fail "${name} wrote control codes into a file"
  grep -q '^logits that differ  *0 of ' "${scratch}/out" || fail "${name} does not say that no logit differs"
  python3 "${check}" "${name}" "${requests}" "${json}"
  [[ "$(stat -c %a "${json}")" == 666 ]] || fail "${name}: the file does not follow the umask"
}

# Usage: refuses CODE WORDS PROGRAM FLAG... It says the words, in one line, and does not run.
refuses() {
  local expected="$1" words="$2" code=0
  shift 2
  "$@" >"${scratch}/out" 2>"${scratch}/err" || code=$?
  [[ "${code}" == "${expected}" ]] || fail "$*: exit code ${code}"
  grep -qF -- "${words}" "${scratch}/err" || fail "$*: does not say '${words}': $(cat "${scratch}/err")"
  [[ "$(wc -l <"${scratch}/err")" == 1 && ! -s "${scratch}/out" ]] || fail "$*: says too much"
}

passes comparison 12 "${comparison}"
passes comparison 9 "${comparison}" --decode=3 --policy=lfu --seed=7
passes multilayer 15 "${multilayer}" --policy=ttl

# A cache that is too small for any prompt costs hits and nothing else.
"${comparison}" --requests=4 --layers=32 --capacity_mb=1 >"${scratch}/out"
grep -q '^logits that differ  *0 of ' "${scratch}/out" || fail "a small cache gives wrong answers"
grep -q 'refused a put in 4 of 4 requests' "${scratch}/out" || fail "refused puts are not told"

refuses 2 "--requests=0" "${comparison}" --requests=0
refuses 2 "--decode=-1" "${comparison}" --decode=-1
refuses 2 "--capacity_mb=0" "${multilayer}" --capacity_mb=0
refuses 2 "--layers=1000" "${multilayer}" --layers=1000
refuses 2 "--instruction_set=mmx" "${multilayer}" --instruction_set=mmx
refuses 2 "cpu_ram" "${comparison}" --backend=floppy
refuses 2 "lru" "${comparison}" --policy=random
refuses 2 "stores none" "${comparison}" --backend=accounting
refuses 2 "'many'" "${comparison}" --requests=many
refuses 2 "unknown" "${multilayer}" --unknown=1
refuses 2 "'twelve'" "${multilayer}" twelve
refuses 1 "/missing/x.json" "${multilayer}" --json=/missing/x.json

code=0
"${multilayer}" --requests=2 --layers=2 --json="${scratch}/closed.json" >&- 2>"${scratch}/err" || code=$?
[[ "${code}" == 1 ]] || fail "a closed stdout: exit code ${code}"
grep -q 'cannot write to the standard output' "${scratch}/err" || fail "a closed stdout is not told"
python3 -m json.tool "${scratch}/closed.json" >/dev/null || fail "with stdout closed, text goes into the file"

"${comparison}" --help | grep -q -- --capacity_mb || fail "--help does not list the flags"
echo "both demos pass"
