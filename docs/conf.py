"""Sphinx configuration: pages, docstrings and the help texts of commands, built without network access."""

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
author = "The sppnet developers"
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

# Names of other packages are not documented here, and intersphinx would need network access.
nitpick_ignore_regex = [("py:.*", r"(jaxtyping|torch|numpy|PIL|collections|pathlib|os)\..*|Tensor|ndarray|'.*'")]


class CommandHelp(SphinxDirective):
    """Directive ``{command-help} train classify``, which shows the output of ``sppnet train classify --help``."""

    required_arguments = 1
    optional_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Return the help text as a literal block."""
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
    """Link a name of the package to its page, also under an alias; undocumented names only have to exist."""
    target = node.get("reftarget", "")
    candidates = [target, *(f"{node.get(scope)}.{target}" for scope in ("py:class", "py:module"))]
    for dotted in candidates if node.get("refdomain") == "py" else ():
        value = find(dotted)
        if value is None:
            continue
        documented = env.domains.python_domain.objects
        public = f"sppnet.{getattr(value, '__name__', '')}"
        for name in (public, f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"):
            if name in documented:
                entry = documented[name]
                uri = app.builder.get_relative_uri(node.get("refdoc", ""), entry.docname)
                return nodes.reference("", "", content, internal=True, refuri=f"{uri}#{entry.node_id}")
        return content
    return None


def find(dotted: str) -> Any:
    """Resolve a dotted name of the package; None if it does not exist."""
    if not dotted.startswith("sppnet."):
        return None
    try:
        return pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError, ValueError):
        return None


def setup(app: Sphinx) -> None:
    """Register the directive, the lexer for CSV and the resolver of names."""
    app.add_directive("command-help", CommandHelp)
    app.add_lexer("csv", TextLexer)
    app.connect("missing-reference", resolve_name)
