"""What the documentation says is so: commands parse, messages exist, links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import browser

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "builder"))

import links  # noqa: E402
import parse  # noqa: E402
import reference  # noqa: E402
import snippets  # noqa: E402

from prism_policy.cli.main import COMMANDS  # noqa: E402


@pytest.mark.parametrize("page", parse.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one_that_the_parser_takes(page: Path) -> None:
    assert parse.complaints(page) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```bash\nprism evaluat runs/a\n```\n", "evaluat"),
        ("```bash\nprism evaluate runs/a --n-episods 3\n```\n", "--n-episods"),
        ("```bash\nprism train --train.stepz 3\n```\n", "--train.stepz"),
        ("```\n$ prism train --task nothing\nloss 0.1\n```\n", "unknown task"),
        ("```bash\nfor s in 0 1; do\n  prism train --seed $s \\\n    --polcy ddpm\ndone\n```\n", "--polcy"),
        ("```bash\nmake everything\n```\n", "no target everything"),
        ("```bash\npip install 'prism-policy[simulator]'\n```\n", "no extra simulator"),
        ("Say `prism saliency --al RUN`.\n", "no flag --al"),
        ("Say `--train.no-compil`.\n", "no flag --train.no-compil"),
        ("Say `prism look RUN`.\n", "no command look"),
        ("<!-- check: rnu -->\n```bash\nprism train\n```\n", "a comment `check:`"),
        ("<!-- check: run -->\nText.\n", "a comment `check:`"),
    ],
)
def test_what_does_not_exist_is_found(tmp_path: Path, text: str, complaint: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    found = parse.complaints(page)
    assert len(found) == 1
    assert complaint in found[0]
    assert found[0].startswith("page.md:")


def test_what_exists_is_not_complained_about(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nPRISM_CACHE=a prism train --train.steps 3 --train.no-compile  # why\n"
        "for s in 0 1; do\n  prism evaluate runs/a-s$s ... && make test\ndone\n```\n"
        "```\n$ prism train \\\n    --seed 1\noutput --of-nothing\n```\n`prism compare A B`, `--data.resize 84`\n"
    )
    assert parse.complaints(page) == []


def test_a_block_says_how_it_is_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- check: with demos.hdf5 runs/a -->\n"
        "<!-- check: run; prism train + --train.steps 2 --seed 1; prism evaluate + --n-episodes 1 -->\n"
        "```bash\nprism train\n```\n"
        "<!-- check: not run: needs a robot -->\n```python\nmove()\n```\n"
        "<!-- check: run\nx = 1\n-->\n```python\nprint(x)\n```\n```\noutput\n```\n"
    )
    cheap, robot, python, output = snippets.blocks(page)
    assert cheap.added == {"train": ["--train.steps", "2", "--seed", "1"], "evaluate": ["--n-episodes", "1"]}
    assert (robot.mode, robot.reason) == ("not run", "needs a robot")
    assert (python.mode, python.before.strip(), python.code) == ("run", "x = 1", "print(x)\n")
    assert (output.mode, output.commands) == ("", "")
    assert snippets.needed(page) == ["demos.hdf5", "runs/a"]
    assert page.read_text().splitlines()[python.line - 1] == "```python"


def test_the_reference_has_every_command_and_setting() -> None:
    commands, settings = reference.commands(), reference.settings()
    assert {name for name in COMMANDS if f"\n## prism {name}" not in commands} == set()
    for flag in ("--train.batch-size", "--policy.encoder.num-keypoints", "--data.clip-quantile", "--task.render.msaa"):
        assert f"- `{flag}" in settings
    assert "- `--train.lr FLOAT`, by default `0.0015`: Peak learning rate of AdamW." in settings  # of the preset nano


def source_text() -> str:
    """The package's text with the literals of a message joined, and `...` where something is filled in."""
    folders = [ROOT / "src", *ROOT.glob("packages/*/src")]
    text = "\n".join(file.read_text() for folder in folders for file in folder.rglob("*.py"))
    text = re.sub(r'"\s*\n\s*f?"', "", text + (ROOT / "scripts/setup.sh").read_text())
    return re.sub(r"\{[^{}]*\}", "...", text).replace("`", "")


def test_troubleshooting_has_messages_that_there_are() -> None:
    source = source_text()
    rows = re.findall(r"^\| (.*?) \| .* \|$", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    parts = [
        p
        for row in rows
        for code in re.findall(r"`([^`]+)`", row)
        for p in re.split(r"\.\.\.|NAME|\(84, 84, 3\)", code)
    ]
    parts = [part.strip(" ;:,'") for part in parts]
    theirs = {"Unrecognized options"}  # tyro's
    assert len(parts) > 80
    assert [
        p for p in parts if len(p) > 3 and p not in theirs and p not in source and p.replace("'", "") not in source
    ] == []


def test_every_page_is_in_the_navigation() -> None:
    index = (ROOT / "docs/index.md").read_text()
    assert [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "index.md" and f"]({p.name})" not in index] == []


def test_dead_links_and_anchors_of_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there"></a><a href="#here"></a><a href="https://x.y"></a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="there"></h1><img src="no.png"><a href="a.html#gone"></a>')
    assert links.dead_links(tmp_path) == (["b.html: a.html#gone", "b.html: no.png"], 4, 1)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_or_a_dead_link(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="needs prism-policy[docs]")
    site = tmp_path / "site"
    build = ["-c", "docs/builder", "-d", str(tmp_path / "trees"), "-E", "-q", "-W", "--keep-going", ".", str(site)]
    source = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *build], cwd=ROOT, env=source, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    dead, inside, _ = links.dead_links(site)
    assert dead == []
    assert inside > 10_000
    assert "docs/index.html" in (site / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")
def test_the_site_is_searched_without_a_server_and_fits_a_phone(tmp_path: Path) -> None:
    site = ROOT / "build/docs"
    if not (site / "search.html").exists():
        pytest.skip("needs `make docs`")
    found = "document.querySelectorAll('.search li').length > 3"
    for address, wait in (("search.html?q=wilson", found), ("docs/index.html", "true"), ("docs/settings.html", "true")):
        with browser.Page(f"{site.as_uri()}/{address}") as page:
            page.command("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
            page.wait_for(wait)
            assert page.complaints() == []
            assert [url for url in page.requests() if not url.startswith(("file:", "data:"))] == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
