#!/usr/bin/env python3
"""Counts the instructions of the store's hot loops and notices when they become more.

  bench/regress/check.py            compares with baseline.json; fails when a loop got worse by a quarter
  bench/regress/check.py --update   writes baseline.json

Instructions do not depend on how busy the machine is. What is compared is the ratio to a loop that
locks a mutex and looks a key up in a hash table, so that another compiler or library shifts both sides.
Needs valgrind (./setup.sh --dev).
"""

import json
import pathlib
import re
import subprocess
import sys

LOOPS = ["hit", "put", "batch", "match", "copy"]
WORSE = 1.25
HERE = pathlib.Path(__file__).resolve().parent
BASELINE = HERE / "baseline.json"


def instructions(binary, loop):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
               f"--toggle-collect=loop_{loop}", binary, loop]
    result = subprocess.run(command, capture_output=True, text=True)
    counted = re.search(r"Collected : (\d+)", result.stderr)
    if result.returncode != 0 or not counted or int(counted[1]) == 0:
        sys.exit(f"check.py: cannot count loop_{loop}:\n{result.stderr}")
    return int(counted[1])


def main():
    if sys.argv[1:] not in ([], ["--update"]):
        sys.exit(__doc__)
    subprocess.run(["bazel", "build", "--noshow_progress", "//bench/regress:loops"],
                   cwd=HERE, check=True)
    workspace = HERE.parent.parent
    binary = workspace / "bazel-bin" / "bench" / "regress" / "loops"
    reference = instructions(binary, "reference")
    ratios = {loop: round(instructions(binary, loop) / reference, 2) for loop in LOOPS}

    if sys.argv[1:]:
        BASELINE.write_text(json.dumps(ratios, indent=2) + "\n")
        return
    baseline = json.loads(BASELINE.read_text())
    worse = []
    for loop in LOOPS:
        print(f"{loop:6} {ratios[loop]:7.2f} times the reference's instructions; "
              f"baseline {baseline[loop]:.2f}")
        if ratios[loop] > WORSE * baseline[loop]:
            worse.append(loop)
        elif ratios[loop] * WORSE < baseline[loop]:
            print(f"{loop}: better by a quarter; --update keeps it so")
    if worse:
        sys.exit("check.py: worse by a quarter: " + ", ".join(worse))


if __name__ == "__main__":
    main()
