"""How `make docs` builds the documentation site.

The pages are the Markdown files of this folder. `README.md`, `CONTRIBUTING.md` and `CHANGELOG.md`
are pages of the site too, from the same files. The pages of the functions are made from their
docstrings by `_ext/api.py`.
"""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import xentrs

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "xentrs"
author = "the authors of xentrs"
version = release = xentrs.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "api"]
exclude_patterns = ["_ext"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(numpy|scipy|torch|xgboost|lightgbm)\..*")
]  # pages of other projects
default_role = "autolink"  # `name` in a docstring is a link where xentrs has that name
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
autodoc_typehints = "none"  # docstrings tell the types

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "xentrs"
html_show_copyright = False

# Pages whose text is a file of the repository's root
PAGES = {"index": "README.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}


# The decisions' list, which is for people who read the repository, has no list for Sphinx.
DECISIONS = "\n```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n"


def read_from_root(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the text of a file of the root into its page, with links as the site has them."""
    if page == "decisions/README":
        source[0] += DECISIONS
    if page not in PAGES:
        return
    text = (ROOT / PAGES[page]).read_text()
    for name, file in PAGES.items():
        text = text.replace(f"]({file})", f"]({name}.md)")
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r"\]\((LICENSE-\w+|examples/\w+\.py)\)", r"](../\1)", text)
    source[0] = f"{text}\n{source[0]}"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", read_from_root)
    return {"parallel_read_safe": True}
