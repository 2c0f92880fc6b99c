"""How Sphinx builds the documentation: `nox -s docs`."""

from atomiclock import __version__

project = "atomiclock"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
nitpicky = False
default_role = "code"  # docstrings write `name`, as Markdown does

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_favicon = "_static/favicon.svg"
html_title = f"atomiclock {version}"
html_show_copyright = False
