"""The workflow templates: what stands in each. `python -m devtools.templates` builds them."""

from __future__ import annotations

from ..frontend import Graph
from .baseline import BASELINE_TEMPLATES
from .cno import CNO_TEMPLATES
from .diversify import DIVERSIFY_TEMPLATES
from .keep import KEEP_TEMPLATES
from .minority import MINORITY_TEMPLATES
from .ovi import OVI_TEMPLATES
from .shelf import SHELF_TEMPLATES
from .tpso import TPSO_TEMPLATES

_METHODS = (BASELINE_TEMPLATES, CNO_TEMPLATES, TPSO_TEMPLATES, MINORITY_TEMPLATES, OVI_TEMPLATES, KEEP_TEMPLATES)

TEMPLATES: dict[str, Graph] = {
    **SHELF_TEMPLATES,
    **DIVERSIFY_TEMPLATES,
    **{name: Graph(nodes) for templates in _METHODS for name, nodes in templates.items()},
}
