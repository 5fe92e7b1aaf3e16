"""Configuration of Sphinx; `make docs` builds the pages and runs their examples."""

import doctest
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).parent.parent

# docs/own_backend.rst runs the class that it shows.
sys.path.insert(0, str(ROOT / "examples"))

project = "durabledict"
author = "The durabledict contributors"
project_copyright = author
# Parsed, not imported: the pages say what the sources say, whatever happens to be installed.
release = re.findall(r'__version__ = "(.+)"', (ROOT / "durabledict" / "__init__.py").read_text())[0]
version = release

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"durabledict {release}"
exclude_patterns = ["_build"]
# In docstrings single backticks are names of the code, most of them without a page to link to.
default_role = "literal"
highlight_language = "python"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"

doctest_default_flags = (
    doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1 | doctest.NORMALIZE_WHITESPACE
)
# Some examples show what is logged as a warning; it need not be on the screen of every run.
doctest_global_setup = """
import logging
logging.getLogger("durabledict").addHandler(logging.NullHandler())
"""


def _link_pages(app, doctree):
    """Turn links to files of the repository, as the README has them, into links to their pages."""
    for node in list(doctree.findall(nodes.reference)):
        found = re.fullmatch(r"docs/(.+)\.rst", node.get("refuri", ""))
        if found is None:
            continue
        text = node.astext()
        link = addnodes.pending_xref(
            "",
            nodes.inline(text, text),
            refdomain="std",
            reftype="doc",
            # From the root, whichever page includes the README.
            reftarget=f"/{found[1]}",
            refdoc=app.env.docname,
            # Where the text is only the file's name, the page's title is shown.
            refexplicit=text != node["refuri"],
            refwarn=True,
        )
        node.replace_self(link)


def setup(app):
    app.connect("doctree-read", _link_pages)
