"""Looking at the teacher's bias before any training."""

from lightning_biaskd.audit.boxes import draw_boxes
from lightning_biaskd.audit.maps import draw_maps
from lightning_biaskd.audit.measure import audit
from lightning_biaskd.audit.report import AuditReport, ClassBias, Correction, Mistake

__all__ = ["AuditReport", "ClassBias", "Correction", "Mistake", "audit", "draw_boxes", "draw_maps"]
