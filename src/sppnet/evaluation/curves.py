"""Figures of precision-recall curves."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.errors import import_optional
from sppnet.evaluation.average_precision import DetectionScores
from sppnet.inference.drawing import class_colour


def write_curves(scores: DetectionScores, folder: Path) -> None:
    """Plot precision-recall curves at overlap 0.5: all in ``pr-curves.png``, each class in ``pr-curve-CLASS.png``.

    The area under the thick line is the AP of the class. Characters not allowed in file names are written as %xx.

    Args:
        scores: scores of a detector.
        folder: output folder, created if missing.

    Raises:
        ModuleNotFoundError: the extra `detect` is not installed.
    """
    figures = import_optional("matplotlib.figure", "curves")
    folder.mkdir(parents=True, exist_ok=True)
    colors = {name: class_colour(label) for label, name in enumerate(scores.per_class)}
    columns = 1 + (len(scores.curves) - 1) // 22
    joint = figures.Figure(figsize=(6.5 + 2 * columns, 5.5), dpi=110, layout="constrained")
    axes = _axes(joint, f"precision and recall at overlap 0.5, mean AP {100 * scores.ap50:.1f}")
    order = sorted(scores.curves, key=lambda name: -_ap50(scores, name))
    lines = [_envelope(axes, scores, name, colors[name], linewidth=1.8) for name in order]
    texts = [f"{100 * _ap50(scores, name):.1f}  {_escape(name)}" for name in order]
    joint.legend(lines, texts, loc="outside right upper", frameon=False, title="AP", ncols=columns, fontsize="small")
    joint.savefig(folder / "pr-curves.png")
    for name in scores.curves:
        figure = figures.Figure(figsize=(6, 5), dpi=110, layout="constrained")
        objects = scores.per_class[name].objects
        axes = _axes(figure, f"{_escape(name)}: AP {100 * _ap50(scores, name):.1f} at overlap 0.5, {objects} objects")
        axes.plot(scores.curves[name].recall, scores.curves[name].precision, color="0.55", linewidth=1)
        line = _envelope(axes, scores, name, colors[name], linewidth=2.5)
        axes.fill_between(line.get_xdata(), line.get_ydata(), step="pre", color=colors[name], alpha=0.15, linewidth=0)
        figure.savefig(folder / f"pr-curve-{_file_name(name)}.png")


def _axes(figure: Any, title: str) -> Any:
    axes = figure.subplots()
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    axes.grid(alpha=0.3)
    return axes


def _envelope(axes: Any, scores: DetectionScores, name: str, color: str, linewidth: float) -> Any:
    """Draw the envelope of a curve, down to 0 at the highest recall."""
    recall, precision = scores.curves[name].recall, scores.curves[name].envelope()
    x, y = np.concatenate(([0.0], recall, recall[-1:])), np.concatenate((precision[:1], precision, [0.0]))
    (line,) = axes.step(x, y, where="pre", color=color, linewidth=linewidth)
    return line


def _ap50(scores: DetectionScores, name: str) -> float:
    return scores.per_class[name].ap50 or 0.0


def _escape(name: str) -> str:
    """Escape a name so that matplotlib does not parse it as a formula."""
    return name.replace("$", r"\$")


def _file_name(name: str) -> str:
    return re.sub(r'[%/\\:*?"<>|\x00-\x1f]', lambda match: f"%{ord(match[0]):02x}", name)
