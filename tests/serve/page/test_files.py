"""The page's files as they are shipped. Needs no browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from .stage import PAGE

IMPORT = re.compile(r'^import .*? from "\./([a-z_]+\.js)";$|\bimport\("\./([^"]+)"\)', re.M | re.S)


class Links(HTMLParser):
    """What a document links to, and what a strict policy would not let it do."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.ids: list[str] = []
        self.forbidden: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        for name in ("src", "href"):
            if (target := given.get(name)) and not target.startswith("#"):
                self.targets.add(target)
        if found := given.get("id"):
            self.ids.append(found)
        if tag == "style" or (tag == "script" and "src" not in given):
            self.forbidden.append(tag)
        self.forbidden += [name for name in given if name == "style" or name.startswith("on")]


def test_index_links_to_files_that_exist_and_holds_no_code():
    page = Links((PAGE / "index.html").read_text("utf-8"))
    assert page.forbidden == []
    assert {target.removeprefix("page/") for target in page.targets} == {
        "main.js",
        "icon.svg",
        *(path.name for path in PAGE.glob("*.css")),
    }
    assert len(page.ids) == len(set(page.ids))


def test_every_module_is_used_and_every_element_they_look_for_exists():
    ids = set(Links((PAGE / "index.html").read_text("utf-8")).ids)
    reached, left = set(), ["main.js"]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            text = (PAGE / name).read_text("utf-8")
            left += [one or other for one, other in IMPORT.findall(text)]
            assert set(re.findall(r'byId\("([^"]+)"\)', text)) <= ids
    assert reached == {path.name for path in PAGE.glob("*.js")}


def test_nothing_comes_from_elsewhere():
    for path in PAGE.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.[a-z]+/|@import|@font-face", text), path.name
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b", text)
