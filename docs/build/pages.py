"""Writes what is generated in the docs: tables from results, options from configs, help from the command line.

    python docs/build/pages.py           rewrites the blocks between `<!-- name -->` and `<!-- end -->`
    python docs/build/pages.py --check   exit code 1 when a page would change

Only the committed results are read, so a number in a page is a number in a result file. A block is a public function of
a file of this folder, and what stands behind its name is the function's argument. Tables of results that no recipe or
script measures any more are text in their pages.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import edits
import findings
import pretrained
import reference
import timings
from blocks import ROOT

BLOCK = re.compile(r"(<!-- (?P<name>[a-z_-]+)(?:: (?P<argument>[a-z0-9_:., -]+?))? -->\n).*?(<!-- end -->)", re.DOTALL)
WRITERS = {
    name: block
    for module in (edits, findings, pretrained, reference, timings)
    for name, block in vars(module).items()
    if getattr(block, "__module__", None) == module.__name__ and not name.startswith("_") and callable(block)
}


def fill(text: str) -> str:
    """A page with every generated block written anew."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{WRITERS[match['name']](match['argument'] or '')}{match[4]}"

    return BLOCK.sub(block, text)


def pages() -> list[Path]:
    """The pages that may hold generated blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    """Fills or checks every page."""
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        fresh = fill(text)
        if fresh != text:
            stale.append(page)
            if "--check" not in sys.argv:
                page.write_text(fresh, encoding="utf-8")
    for page in stale:
        print(f"{'stale' if '--check' in sys.argv else 'written'}: {page.relative_to(ROOT)}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
