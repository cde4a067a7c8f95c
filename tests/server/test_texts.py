"""What the page says: everything that the server warns of is there in Russian, and nothing that it does not."""

import ast
import re
from pathlib import Path

import genpipe
from genpipe.server.app import PAGE

PACKAGE = Path(genpipe.__file__).parent
TEXTS = (PAGE / "texts.js").read_text(encoding="utf-8")


def table(name: str) -> dict[str, str]:
    """One of the tables of texts.js."""
    (body,) = re.findall(rf"^const {name} = {{\n(.*?)^}};", TEXTS, re.MULTILINE | re.DOTALL)
    return {
        key or quoted: value
        for key, quoted, value in re.findall(r'^  (?:(\w+)|"(.+?)"):\s+"(.*)",$', body, re.MULTILINE)
    }


def names(form: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", form))


def forms() -> set[str]:
    """The forms of all notices in the source."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "Notice(" not in source:
            continue
        tree = ast.parse(source)
        assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Notice"):
                continue
            said = call.args[0]
            if isinstance(said, ast.Name):  # set in the lines before
                said = max(
                    (
                        each
                        for each in assigned
                        if ast.unparse(each.targets[0]) == said.id and each.lineno < call.lineno
                    ),
                    key=lambda each: each.lineno,
                ).value
            assert isinstance(said, ast.Constant) and isinstance(said.value, str), ast.unparse(call)
            found.add(said.value)
    return found


def test_every_notice_is_there_in_russian() -> None:
    found, russian = forms() - {"{text}"}, table("RUSSIAN_NOTICES")
    assert len(found) > 10 and russian.keys() == found
    for form, text in russian.items():
        assert names(text) <= names(form), form


def test_both_languages_say_the_same() -> None:
    english, russian = table("ENGLISH"), table("RUSSIAN")
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    in_page = set(re.findall(r'data-(?:text|label)="(\w+)"', page))
    assert russian.keys() == english.keys() | in_page
    for name, text in english.items():
        assert names(text) >= names(russian[name]), name
    used = {
        name
        for path in PAGE.glob("*.js")
        for name in re.findall(r'\b(?:text|button)\("(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert used <= english.keys()
