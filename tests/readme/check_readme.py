#!/usr/bin/env python3
"""Checks that documents show the examples as they are built.

Usage: check_readme.py DOCUMENT EXAMPLE [DOCUMENT EXAMPLE]...
"""

import sys
import textwrap

MARK = "  // [example]\n"


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def main():
    missing = []
    for document, path in zip(sys.argv[1::2], sys.argv[2::2]):
        shown = read(document)
        for number, example in enumerate(read(path).split(MARK)[1::2], 1):
            if f"```cpp\n{textwrap.dedent(example)}```\n" not in shown:
                missing.append((document, number, path))
    for document, number, path in missing:
        print(f"{document} does not show example {number} of {path} as it is", file=sys.stderr)
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
