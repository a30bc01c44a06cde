"""The pages of this folder and the docstrings of the package as a site: `make docs`.

Sphinx with MyST rather than MkDocs: it reads docstrings and Markdown itself, is released regularly,
and every broken link, missing page and reference to a name that is gone is a warning, hence an error.

Pages are plain Markdown, as GitHub shows it. Two things are added here while they are read: the
contents, from the links of index.md, and the pages of the API, from the groups of names in start.md.
"""

import inspect
import re
import sys
import types
import typing
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

import nad_jax  # noqa: E402

project = "nad_jax"
version = release = nad_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"nad_jax {version}"
html_show_copyright = False
python_maximum_signature_line_length = 88

myst_heading_anchors = 3  # as GitHub makes them
default_role = "py:obj"  # what docstrings write between backticks
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
nitpicky = True
# Types of annotations that no one writes down.
nitpick_ignore = [
    ("py:class", f"nad_jax.{name}")
    for name in (
        "batches.Batches",
        "chunks.EnsembleObserver",
        "models.Apply",
        "nads.Spectrum",
        "tasks.separable.Noise",
    )
]
# Names of other packages, arguments and formulas are between backticks too; ours must exist.
nitpick_ignore_regex = [("py:.*", r"(?s)(?!nad_jax\.).*")]


# What has no docstring of its own.
VALUES = {
    "ARCHITECTURES": "The built-in architectures, by the names that `create_model` takes.",
    "SCORE_NETWORKS": "The built-in score networks, by the names that `create_score_network` takes.",
    "__version__": "The version of the package.",
}


def name_groups(text):
    """The groups of names of the package in start.md: [(names, what they are for)]."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.+) \|$", text, re.MULTILINE)
    return [(re.findall(r"`(\w+)`", names), purpose) for names, purpose in rows]


def _class(path):
    return f".. autoclass:: {path}\n   :members:\n   :show-inheritance:\n"


def _entry(name):
    """The directives of one public name, and of the record that it returns."""
    if name in VALUES:
        return f".. py:data:: nad_jax.{name}\n\n   {VALUES[name]}\n"
    thing = getattr(nad_jax, name)
    if isinstance(thing, types.ModuleType):
        return f".. automodule:: nad_jax.{name}\n   :members:\n"
    if inspect.isclass(thing):
        return _class(f"nad_jax.{name}")
    record = typing.get_type_hints(thing).get("return")
    own = inspect.isclass(record) and record.__module__.startswith("nad_jax.")
    own = own and record.__name__ not in nad_jax.__all__
    return f".. autofunction:: nad_jax.{name}\n\n" + (
        _class(f"{record.__module__}.{record.__name__}") if own else ""
    )


def write_api(folder, groups):
    """Writes a page for each group, and gives their names.

    Raises:
      ValueError: where a public name is in no group, or has no docstring.
    """
    missing = set(nad_jax.__all__) - {name for names, _ in groups for name in names}
    if missing:
        raise ValueError(f"start.md: names in no group: {', '.join(sorted(missing))}")
    folder.mkdir(exist_ok=True)
    pages = []
    for number, (names, purpose) in enumerate(groups):
        named = [name for name in names if name not in VALUES]
        bare = [name for name in named if not inspect.getdoc(getattr(nad_jax, name))]
        if bare:
            raise ValueError(f"nad_jax: names without a docstring: {', '.join(bare)}")
        title = re.sub(r" \(\[.*\)$", "", purpose)
        title = title[0].upper() + title[1:]
        page = f"group_{number:02}"
        text = "\n".join([title, "=" * len(title), "", *map(_entry, names)])
        (folder / f"{page}.rst").write_text(text, encoding="utf-8")
        pages.append(f"api/{page}")
    return pages


API_PAGES: list[str] = []


def _begin(app):
    """Writes the pages of the API, and makes annotations lead to them."""
    for name in nad_jax.__all__:
        if inspect.isclass(getattr(nad_jax, name)):
            getattr(nad_jax, name).__module__ = "nad_jax"
    start = (DOCS / "start.md").read_text(encoding="utf-8")
    API_PAGES[:] = write_api(DOCS / "api", name_groups(start))


def _contents(caption, pages):
    return "\n".join(["", "```{toctree}", ":hidden:", *caption, "", *pages, "```", ""])


def _add_contents(app, page, source):
    """The contents: what index.md links to, by its headings, and the pages of the API."""
    if page == "index":
        for section in source[0].split("\n## ")[1:]:
            title, _, text = section.partition("\n")
            linked = re.findall(r"\]\(([\w/]+)\.md\)", text)
            source[0] += _contents([f":caption: {title}"], linked)
    elif page == "api":
        source[0] += "\n".join(["", *(f"- [](/{one})" for one in API_PAGES), ""])
        source[0] += _contents([], [f"/{one}" for one in API_PAGES])


def _to_rst(app, what, name, thing, options, lines):
    """Docstrings are text: their stars and bars are formulas, and `field: …` begins an entry."""
    if what == "property":
        lines.insert(0, "")  # or napoleon takes what stands before a colon for a type
    entry = False  # whether a line is part of one
    changed = []
    for line in lines:
        pieces = re.split(r"(`+[^`]*`+)", line)
        pieces[::2] = [re.sub(r"([*|]|_(?!\w))", r"\\\1", piece) for piece in pieces[::2]]
        line = "".join(pieces)
        field = re.match(r"([a-z]\w*(?:, [a-z]\w*)*|[a-z]\w*\(.*\) -> .*?): +(?=\S)", line)
        if field:
            changed += ["", f"- **{field[1]}**: {line[field.end() :]}"]
        elif entry and line.startswith(" "):
            changed.append(f"  {line.strip()}")
        else:
            changed += ["", line] if entry else [line]
        entry = bool(field) or (entry and line.startswith(" "))
    lines[:] = changed


def _skip_fields(app, what, name, thing, skip, options):
    """Fields of records are described in the docstring of their class."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app):
    app.connect("builder-inited", _begin)
    app.connect("source-read", _add_contents)
    app.connect("autodoc-process-docstring", _to_rst, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", _skip_fields)
