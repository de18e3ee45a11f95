"""The documentation as a site: `make docs`."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "nnunet-autosam2"
author = copyright = "nnunet-autosam2 maintainers"
release = version = version_of("nnunet-autosam2")
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["site"]
default_role = "code"  # what stands between backticks in a docstring

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # experiments.md has the headings of a report

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"nnunet-autosam2 {version}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4f0", "color-brand-content": "#7cc4f0"},
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
