"""Checks what trace_replay wrote: python3 check_report.py JSON HTML REQUESTS."""

import html.parser
import json
import sys

VOID = {"meta"}


class Page(html.parser.HTMLParser):
    """Complains about elements that are not closed, or closed in the wrong order."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not {"src", "href"} & {name for name, _ in attrs}, f"<{tag}> names another file"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()


def main(json_path, html_path, requests):
    with open(json_path, encoding="utf-8") as file:
        report = json.load(file)
    assert report["requests"] == int(requests), report["requests"]
    assert report["block_references"] >= report["unique_blocks"] > 0
    assert report["results"], "no results"
    for result in report["results"]:
        assert result["touch_order"] in ("forward", "chain")
        assert result["capacity_blocks"] >= 1 and result["policy"]
        assert 0 <= result["prefix_hit_ratio"] <= result["plain_hit_ratio"] <= 1, result
        assert result["plain_hit_ratio"] <= result["optimum_hit_ratio"] + 1e-9, result
        assert 0 <= result["token_hit_ratio"] <= 1 and result["evictions"] >= 0
    page = Page()
    with open(html_path, encoding="utf-8") as file:
        page.feed(file.read())
    page.close()
    assert not page.open, f"not closed: {page.open}"
    assert {"svg", "polyline", "table", "style"} <= page.seen, page.seen


if __name__ == "__main__":
    main(*sys.argv[1:])
