"""The site: Sphinx reads the pages, the docstrings and the commands' own help; it asks the network for nothing."""

import io
import os
import pkgutil
from contextlib import redirect_stdout
from typing import Any

from docutils import nodes
from pygments.lexers import TextLexer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import sppnet
from sppnet.cli.main import run

project = "sppnet"
author = "the authors of sppnet"
release = version = sppnet.__version__
html_title = f"sppnet {release}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

# What other packages define is not on this site, and their sites are not asked for it.
nitpick_ignore_regex = [("py:.*", r"(jaxtyping|torch|numpy|PIL|collections|pathlib|os)\..*|Tensor|'.*'")]


class CommandHelp(SphinxDirective):
    """``{command-help} train classify``: what ``sppnet train classify --help`` prints."""

    required_arguments = 1
    optional_arguments = 2

    def run(self) -> list[nodes.Node]:
        """The help as a literal block."""
        os.environ["COLUMNS"] = "84"
        out = io.StringIO()
        with redirect_stdout(out):
            try:
                run([*self.arguments, "--help"])
            except SystemExit as end:
                if end.code:
                    raise self.error(f"sppnet {' '.join(self.arguments)} --help failed") from end
        text = "".join(letter for letter in out.getvalue() if letter.isprintable() or letter == "\n")
        block = nodes.literal_block(text, text, language="text", classes=["command-help"])
        return [block]


def resolve_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Link a name of ours to the page that has it, under whichever name; one that no page has must exist at least."""
    target = node.get("reftarget", "")
    inside = [target, *(f"{node.get(place)}.{target}" for place in ("py:class", "py:module"))]
    for dotted in inside if node.get("refdomain") == "py" else ():
        value = find(dotted)
        if value is None:
            continue
        documented = env.domains.python_domain.objects
        public = f"sppnet.{getattr(value, '__name__', '')}"
        for name in (public, f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"):
            if name in documented:
                found = documented[name]
                builder = app.builder
                place = builder.get_relative_uri(node.get("refdoc", ""), found.docname)
                return nodes.reference("", "", content, internal=True, refuri=f"{place}#{found.node_id}")
        return content
    return None


def find(dotted: str) -> Any:
    """What a dotted name of the package stands for, None if there is no such thing."""
    if not dotted.startswith("sppnet."):
        return None
    try:
        return pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return None


def setup(app: Sphinx) -> None:
    """Add what is our own."""
    app.add_directive("command-help", CommandHelp)
    app.add_lexer("csv", TextLexer)
    app.connect("missing-reference", resolve_name)
