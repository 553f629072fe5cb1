"""The workflow templates: what stands in each. `python -m devtools.templates` builds them."""

from __future__ import annotations

from ..frontend import Node
from .baseline import BASELINE_TEMPLATES
from .cno import CNO_TEMPLATES
from .minority import MINORITY_TEMPLATES
from .ovi import OVI_TEMPLATES
from .tpso import TPSO_TEMPLATES

TEMPLATES: dict[str, dict[str, Node]] = {
    **BASELINE_TEMPLATES,
    **CNO_TEMPLATES,
    **TPSO_TEMPLATES,
    **MINORITY_TEMPLATES,
    **OVI_TEMPLATES,
}
