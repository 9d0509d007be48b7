#!/usr/bin/python3
"""Draws what //bench:peers wrote with --json as an SVG, and prints it as a table in Markdown.

Usage: bench/plot.py FILE.json FILE.svg
Needs matplotlib, which Debian has (python3-matplotlib) for its own Python.
"""

import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

# Plain copies are lines across the bars; everything else has a colour of its own.
PLAIN = {"memcpy": ":", "streaming_stores": "--"}
TITLES = {
    "put_new": "put into a store with room",
    "put_full": "put into a full store",
    "get": "copying get",
    "get_zero_copy": "get without a copy",
}
COLOURS = ["#1f5fa8", "#86b4e0", "#8a8f98", "#c8483c", "#4f9d5d", "#d9962e", "#7d5ba6"]


def payload_name(size):
    return f"{size >> 20} MiB" if size % (1 << 20) == 0 else f"{size >> 10} KiB"


def draw(axes, operation, results, colours):
    """One panel: GB/s, or microseconds where nothing is moved."""
    figure = "p50_us" if operation == "get_zero_copy" else "gb_per_s"
    value = {(r["system"], r["payload_bytes"]): r[figure] for r in results if r["operation"] == operation}
    payloads = sorted({payload for _, payload in value})
    systems = [system for system in colours if any((system, p) in value for p in payloads)]
    width = 0.8 / max(len(systems), 1)
    for i, system in enumerate(systems):
        at = [p + (i - (len(systems) - 1) / 2) * width for p in range(len(payloads))]
        heights = [value.get((system, payload), 0) for payload in payloads]
        bars = axes.bar(at, heights, width * 0.92, color=colours[system], label=system)
        axes.bar_label(bars, fmt="%.2g", fontsize=6, padding=1)
    for plain, style in PLAIN.items():
        for p, payload in enumerate(payloads):
            if (plain, payload) in value:
                axes.hlines(value[plain, payload], p - 0.45, p + 0.45, color="black", linewidth=0.9,
                            linestyle=style, label=plain if p == 0 else None)
    axes.set_title(TITLES[operation], fontsize=10)
    axes.set_xticks(range(len(payloads)), [payload_name(payload) for payload in payloads])
    axes.set_ylabel("GB/s" if figure == "gb_per_s" else "P50, µs (less is better)")
    axes.spines[["top", "right"]].set_visible(False)


def markdown(results):
    """A row for each system, in each cell the payloads in ascending order."""
    payloads = sorted({r["payload_bytes"] for r in results})
    names = " / ".join(payload_name(payload) for payload in payloads)
    yield f"| GB/s at {names} | " + " | ".join(TITLES.values()) + ", P50 |"
    yield "|---" * (len(TITLES) + 1) + "|"
    value = {(r["system"], r["operation"], r["payload_bytes"]): r for r in results}
    for system in dict.fromkeys(r["system"] for r in results):
        cells = [f"{system} (plain copy)" if system in PLAIN else system]
        for operation in TITLES:
            found = [value.get((system, operation, payload)) for payload in payloads]
            if operation == "get_zero_copy":
                numbers = [f"{r['p50_us']:.1f}" for r in found if r] + ["µs"]
            else:
                numbers = [f"{r['gb_per_s']:.{0 if r['gb_per_s'] >= 10 else 1}f}" for r in found if r]
            cells.append(" / ".join(numbers).replace(" / µs", " µs") if any(found) else "")
        yield "| " + " | ".join(cells) + " |"


def main():
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        report = json.load(file)
    results = report["results"]
    systems = list(dict.fromkeys(r["system"] for r in results if r["system"] not in PLAIN))
    colours = {system: COLOURS[i % len(COLOURS)] for i, system in enumerate(systems)}

    # Text stays text, and the same results give the same file.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kvcache", "font.size": 8})
    figure, panels = plt.subplots(2, 2, figsize=(10, 6.4))
    for axes, operation in zip(panels.flat, TITLES):
        draw(axes, operation, results, colours)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), frameon=False)
    figure.suptitle(f"GB/s by payload, one thread, stores of {report['working_set_mb']} MiB, "
                    f"medians of {report['rounds']} rounds", fontsize=10)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(sys.argv[2], metadata={"Date": None})
    print("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
