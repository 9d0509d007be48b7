#!/usr/bin/env python3
"""Checks that README.md shows the examples as they are built.

Usage: check_readme.py README EXAMPLE...
"""

import sys
import textwrap

MARK = "  // [example]\n"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        readme = file.read()
    missing = []
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8") as file:
            examples = file.read().split(MARK)[1::2]
        for number, example in enumerate(examples, 1):
            if f"```cpp\n{textwrap.dedent(example)}```\n" not in readme:
                missing.append((path, number))
    for path, number in missing:
        print(f"README.md does not show example {number} of {path} as it is", file=sys.stderr)
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
