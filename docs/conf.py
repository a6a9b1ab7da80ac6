"""The documentation site: `make docs` builds it into build/site, and warnings are errors.

Sphinx, because it is looked after, reads the same Markdown that a checkout shows (MyST), and makes the
reference of docstrings and types by itself. The source folder is the whole tree, so links between pages,
examples and results are the same on the site as in a checkout; what a page links to and is no page is copied.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpudirect import __version__  # noqa: E402

project = "gpudirect"
version = release = __version__
copyright = "the gpudirect authors. MIT; the kernel module MIT or GPL-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "examples/README.md", "results/README.md", "SECURITY.md", "CONTRIBUTING.md",
                    "CHANGELOG.md"]  # fmt: skip
exclude_patterns = [".*", "build", "dist", "gpudirect*", "p2pmod", "tests"]
nitpicky = False  # types of NumPy and of private modules have no page

myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("ArrayLike", "DTypeLike", "Shape")}
autodoc_inherit_docstrings = False
default_role = "literal"
add_module_names = False
maximum_signature_line_length = 100

html_theme = "furo"
html_title = "gpudirect"
html_copy_source = False
html_show_sphinx = False
html_additional_pages = {"index": "redirect.html"}  # the folder's own address leads to the first page
templates_path = ["_site"]
html_static_path = ["_site"]
html_css_files = ["site.css"]


def setup(app):
    app.connect("source-read", anchors)
    app.connect("autodoc-process-docstring", lists_and_examples)


def anchors(app, name, source):
    """Anchors are HTML in a checkout; here they are targets, so that a link to none is a warning."""
    source[0] = re.sub(r'^<a id="([\w-]+)"></a>$', r"(\1)=", source[0], flags=re.MULTILINE)


def lists_and_examples(app, what, name, value, options, lines):
    """Docstrings are made to be read as they are: `name: words` of an argument, examples that are indented."""
    fresh, state = [], None
    for line in lines:
        argument = re.match(r"([a-z_]+(?:, [a-z_]+)*(?:\([a-z_, ]+\))?): ", line)
        if argument:
            fresh += [] if state == "list" else [""]
            fresh.append(f"* ``{argument[1]}``: {line[argument.end():]}")
            state = "list"
        elif not line:
            fresh.append("")
            state = "example" if state == "example" else None
        elif line.startswith("    ") and state == "list":
            fresh.append("  " + line.lstrip())
        elif line.startswith("    ") and state in (None, "example"):
            fresh += [line] if state else [".. code-block:: python", "", line]
            state = "example"
        else:
            fresh += [] if state in (None, "words") else [""]
            fresh.append(line)
            state = "words"
    lines[:] = fresh
