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
            example = textwrap.dedent(file.read().split(MARK)[1])
        if f"```cpp\n{example}```\n" not in readme:
            missing.append(path)
    for path in missing:
        print(f"README.md does not show the example of {path} as it is", file=sys.stderr)
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
