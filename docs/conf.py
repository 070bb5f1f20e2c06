"""Sphinx configuration. The reference is made from the docstrings of the source tree; compiled parts are mocked."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

project = "hetcomm"
author = "The hetcomm developers"
copyright = "2026, The hetcomm developers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "hetcomm"
exclude_patterns = ["_build"]

autodoc_mock_imports = ["hetcomm._ext.heart", "hetcomm._ext.ucp", "hetcomm._ext.oneccl", "mpi4py", "cupy"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autoclass_content = "class"
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_heading_anchors = 3
