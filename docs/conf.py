"""How the documentation is built: from Markdown pages whose code runs, and from the docstrings. No network."""

import os
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "examples", "course"))
import kernels
import student
import tables

project = "bll_pyro"
author = "The bll_pyro authors"
copyright = author
version = release = installed_version("bll-pyro")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_static_path = ["_static"]
html_css_files = ["pages.css"]
templates_path = ["_templates"]
nitpicky = False  # types of other libraries have no target without the network

# Pages: Markdown; those that start with a notebook header are executed, and an error in a cell is an error here.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_kernel_rgx_aliases = {"python3": kernels.NAME}
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True  # what a page saves is no part of the sources
nb_output_stderr = "warn"  # and a warning is an error: what a page prints there, its readers would see too
# Pyro's progress bars ask for a notebook widget where they find a notebook
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

# Reference: what a room lists in __all__ is public.
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # fields are documented once, in the class

html_theme = "pydata_sphinx_theme"
html_title = "bll_pyro"
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 1,
    "show_prev_next": False,
    "footer_end": [],
}
# Pages that stand alone at the top have no section to navigate, so no column for it.
ALONE = (
    "index",
    "installation",
    "benchmarks",
    "releases",
    "contributing",
    "glossary",
    "practice",
    "scale",
    "benchmarks-suite",
    "search",
    "genindex",
    "py-modindex",
)
html_sidebars = {name: [] for name in ALONE}


def write_mathml(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers show by themselves: no script, no fonts from elsewhere."""
    is_block = isinstance(node, nodes.math_block)
    translator.body.append(tex2mathml(node.astext(), as_block=is_block))
    raise nodes.SkipNode


def skips(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Whether a member has no entry: methods that scikit-learn adds refer to pages of its own."""
    return True if re.fullmatch(r"set_\w+_request|get_metadata_routing", name) else None


def setup(app: Sphinx) -> None:
    """Register the renderer of formulas, and what the reference leaves out."""
    app.connect("autodoc-skip-member", skips)
    app.connect("builder-inited", lambda _: kernels.start())
    app.connect("builder-inited", lambda _: student.write_pages(Path(app.srcdir) / "tutorials" / "generated"))
    renderers = (write_mathml, None)
    app.add_directive("missed-targets", tables.MissedTargets)
    app.add_directive("front-door", tables.FrontDoor)
    app.add_html_math_renderer("mathml", inline_renderers=renderers, block_renderers=renderers)
