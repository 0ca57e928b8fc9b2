"""Pages of the public functions, made from their docstrings before Sphinx reads the sources.

The list of functions is ``__all__`` of `xentrs` and of `xentrs.torch`: a new loss has its page and
its line in the index without an entry anywhere. Functions of NumPy arrays are imported. Those of
PyTorch are read from their source files, so that the site is built without PyTorch.
"""

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

from numpydoc.docscrape_sphinx import SphinxDocString
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import xentrs

PYTHON = Path(xentrs.__file__).parents[1]


class Source(NamedTuple):
    """Where a public function or class is defined."""

    module: str
    node: ast.FunctionDef | ast.ClassDef


def source_file(module: str) -> Path:
    """Return the file of a module of ours."""
    path = PYTHON.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def body(module: str) -> list[ast.stmt]:
    """Return the statements of a module, those under a condition too."""
    statements = ast.parse(source_file(module).read_text()).body
    return [part for one in statements for part in (one.body if isinstance(one, ast.If) else [one])]


def find(module: str, name: str) -> Source:
    """Return where a name of a module is defined, be it imported there."""
    for node in reversed(body(module)):  # of overloads the last is the function
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return Source(module, node)
        if isinstance(node, ast.ImportFrom) and any(one.name == name for one in node.names):
            return find(str(node.module), name)
    raise ValueError(f"{module} has no function or class {name}")


def public(module: str) -> list[str]:
    """Return the functions and classes of a module's ``__all__``, without importing it."""
    for node in body(module):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    raise ValueError(f"{module} has no __all__")


# Modules whose pages are theirs as a whole
MODULES = ["xentrs.xgboost", "xentrs.lightgbm", "xentrs.catboost", "xentrs.dask"]

OF_NUMPY = {name: find("xentrs", name) for name in public("xentrs")}
OF_TORCH = {name: find("xentrs.torch", name) for name in public("xentrs.torch")}


def summary(name: str, source: Source) -> str:
    """Return the first line of a docstring."""
    text = ast.get_docstring(source.node)
    if text is None:
        raise ValueError(f"{name} has no docstring")
    return text.split("\n\n")[0].replace("\n", " ")


def parameters(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return a function's parameters without their types, which its docstring tells."""
    if isinstance(node, ast.ClassDef):
        methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
        node = next(method for method in methods if method.name == "__init__")
        node.args.args = [one for one in node.args.args if one.arg != "self"]
    everything = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    for one in everything:
        one.annotation = None
    return ast.unparse(node.args)


def for_sphinx(text: str) -> str:
    """Return a docstring with what it says in plain text said to Sphinx.

    The file of measured errors becomes a link. The bars of an absolute value are no substitution,
    and an author's initial after a reference's number begins no list.
    """
    text = text.replace("docs/numerics.md", ":doc:`/numerics`")
    text = re.sub(r"\|(\w+)\|", r"\\|\1\\|", text)
    return re.sub(r"^(\s*\.\. \[[^]]+\] )(?=[A-Z]\. )", r"\1\\", text, flags=re.MULTILINE)


def change_docstring(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Change the lines of a docstring of NumPy's functions, after numpydoc has."""
    lines[:] = for_sphinx("\n".join(lines)).split("\n")


def torch_page(name: str) -> str:
    """Return the page of a function or module for PyTorch."""
    node = OF_TORCH[name].node
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    docstring = SphinxDocString(ast.get_docstring(node), config={"show_class_members": False})
    body = for_sphinx(str(docstring)).replace("\n", "\n   ")
    return (
        f"{heading(f'torch.{name}')}.. currentmodule:: xentrs.torch\n\n"
        f".. py:{kind}:: {name}({parameters(node)})\n\n   {body}\n"
    )


def numpy_page(name: str) -> str:
    is_class = isinstance(OF_NUMPY[name].node, ast.ClassDef)
    kind, members = ("class", "   :members:\n") if is_class else ("function", "")
    return f"{heading(name)}.. currentmodule:: xentrs\n\n.. auto{kind}:: {name}\n{members}"


def module_page(module: str) -> str:
    """Return the page of a module: its own docstring, its classes, functions and metrics."""
    metrics = [name for name in public(module) if name.endswith("_metric")]
    defined = {node.name for node in body(module) if isinstance(node, ast.FunctionDef)}
    functions = [name for name in public(module) if name in defined]
    classes = [name for name in public(module) if name not in (*metrics, *functions)]
    return "\n".join(
        [
            f"{heading(module)}.. automodule:: {module}\n\n.. currentmodule:: {module}\n",
            *(f".. autoclass:: {name}\n   :members:\n   :inherited-members:\n" for name in classes),
            *(f".. autofunction:: {name}\n" for name in functions),
            *(f".. autodata:: {name}\n   :no-value:\n" for name in metrics),
        ]
    )


def heading(title: str) -> str:
    return f"{title}\n{'=' * len(title)}\n\n"


def table(names: list[str], prefix: str, sources: dict[str, Source]) -> str:
    """Return a table of links to pages, with the first line of each docstring."""
    lines = [".. list-table::", "   :widths: 45 55", ""]
    for name in names:
        lines += [
            f"   * - :doc:`{name} <{prefix}.{name}>`",
            f"     - {summary(name, sources[name])}",
        ]
    return "\n".join(lines) + "\n\n"


INTRODUCTION = """\
Each loss has variants with the same arguments: ``..._with_grad`` also returns the gradient, and
``..._with_grad_hess`` the gradient and the diagonal of the Hessian.

"""


def index(losses: list[str], classes: list[str], others: list[str], torch: list[str]) -> str:
    """Return the page that lists all others."""
    pages = [f"xentrs.{name}" for name in losses + classes + others]
    pages += [f"xentrs.torch.{name}" for name in torch] + MODULES
    return "\n".join(
        [
            heading("Functions"),
            INTRODUCTION,
            section("Losses of NumPy arrays") + table(losses, "xentrs", OF_NUMPY),
            section("Evaluation, and classes in slices") + table(classes, "xentrs", OF_NUMPY),
            section("Threads and configuration") + table(others, "xentrs", OF_NUMPY),
            section("Losses of PyTorch tensors") + table(torch, "xentrs.torch", OF_TORCH),
            section("Objectives of boosted trees")
            + "\n".join(f"- :doc:`{module} <{module}>`" for module in MODULES)
            + "\n",
            ".. toctree::\n   :hidden:\n",
            *(f"   {page}" for page in pages),
            "",
        ]
    )


def section(title: str) -> str:
    return f"{title}\n{'-' * len(title)}\n\n"


def write(path: Path, text: str) -> None:
    """Write a file unless it has that text already, so that Sphinx rereads only what changed."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def make_pages(app: Sphinx) -> None:
    """Write the pages of all functions into the folder `api` and remove those of former ones."""
    names = list(OF_NUMPY)
    losses = [name for name in names if f"{name}_with_grad" in names or "_with_grad" in name]
    classes = [name for name in names if isinstance(OF_NUMPY[name].node, ast.ClassDef)]
    others = [name for name in names if name not in losses + classes]
    torch = list(OF_TORCH)
    texts = {"index": index(losses, classes, others, torch)}
    texts |= {f"xentrs.{name}": numpy_page(name) for name in names}
    texts |= {f"xentrs.torch.{name}": torch_page(name) for name in torch}
    texts |= {module: module_page(module) for module in MODULES}
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.rst"):
        if old.stem not in texts:
            old.unlink()
    for name, text in texts.items():
        write(folder / f"{name}.rst", text)


def module_of(app: Sphinx, module: str, name: str) -> str | None:
    """Tell where a public function is defined, for the link to its source."""
    sources = OF_TORCH if module == "xentrs.torch" else OF_NUMPY
    return sources[name].module if name in sources else None


def source_of(app: Sphinx, module: str) -> tuple[str, dict[str, Any]] | None:
    """Return the text of a module of ours and the lines of its functions, without importing it."""
    file = source_file(module)
    if not file.exists():
        return None
    analyzer = ModuleAnalyzer.for_string(file.read_text(), module)
    analyzer.analyze()
    return analyzer.code, analyzer.tags


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", make_pages)
    app.connect("autodoc-process-docstring", change_docstring, priority=900)
    app.connect("viewcode-follow-imported", module_of)
    app.connect("viewcode-find-source", source_of)
    return {"parallel_read_safe": True}
