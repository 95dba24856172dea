"""ONNX files of trained models, and their verification."""

from sppnet.export.models import ExportError, export_classifier, export_regions

__all__ = ["ExportError", "export_classifier", "export_regions"]
