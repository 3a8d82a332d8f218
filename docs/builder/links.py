"""Dead links of a built site: `python links.py FOLDER` names them and exits with 1 where there are any.

Sphinx has looked at what the pages' text links to. This looks at what came out: every link, image, script and style of
every page, in menus too, and every anchor. Addresses of other sites are counted, not asked for.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "top"}
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links and anchors."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value and tag != "meta":
                self.anchors.add(value)


def dead_links(site: Path) -> tuple[list[str], int, int]:
    """Return the dead links of a site with the page of each, how many links there are, and how many lead outside."""
    pages = {file.resolve(): Page(file) for file in sorted(site.rglob("*.html"))}
    dead, inside, outside = [], 0, 0
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                outside += 1
                continue
            inside += 1
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.is_file() or (target in pages and unquote(parts.fragment) not in pages[target].anchors):
                dead.append(f"{file.relative_to(site.resolve())}: {link}")
    return sorted(set(dead)), inside, outside


def main() -> int:
    """Print what was found."""
    dead, inside, outside = dead_links(Path(sys.argv[1]))
    print(*dead, sep="\n", end="\n" if dead else "")
    print(f"{len(dead)} dead of {inside} links in the site; {outside} to other sites were not tried")
    return 1 if dead or not inside else 0


if __name__ == "__main__":
    sys.exit(main())
