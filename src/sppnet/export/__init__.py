"""Export of trained models to ONNX, with verification."""

from sppnet.export.models import ExportError, export_classifier, export_regions

__all__ = ["ExportError", "export_classifier", "export_regions"]
