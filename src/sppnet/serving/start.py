"""The model to serve, and its service with the defaults for its task and device."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sppnet.classify.model import Classifier
from sppnet.detect.model import Detector
from sppnet.detect.options import is_box_file
from sppnet.detect.proposals import SOURCES
from sppnet.detect.two_stage.model import TwoStageDetector
from sppnet.features.encoder import RegionEncoder, create_region_encoder
from sppnet.features.options import RegionEncoderConfig
from sppnet.registry import IMAGENET, TASKS, Model, load
from sppnet.segment.model import Segmenter
from sppnet.serving.app import Batching, Service
from sppnet.serving.limits import Limits, Runtime
from sppnet.serving.runtimes import onnx_probabilities, takes_padding, torch_probabilities
from sppnet.serving.tasks import ClassifyTask, DetectTask, RegionTask, SegmentTask, Task, warm_up

_MAX_PADDING = 0.1
_MAX_CPU_WORKERS, _GPU_WORKERS = 4, 2
# On a CPU, a batch of 2 equal sizes is slightly faster than 2 passes; a batch of 8 takes 1.5 times as long as 8 passes.
_CPU_BATCH, _GPU_BATCH = 2, 16


def load_model(run: str, regions: bool = False, **options: Any) -> Model:
    """Load the model of a run, or create a region encoder from a run or a backbone.

    Args:
        run: run folder, ``imagenet``, or with `regions` also a backbone name.
        regions: whether to create a region encoder.
        options: `levels`, `scales` and `weights` of the region encoder; None: those of the run or the default.

    Raises:
        ValueError: an option has no effect, or the run cannot be loaded.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if not regions:
        for name, value in options.items():
            raise ValueError(f"{name}: expected no value without --regions, got {value}")
        return load(run)
    if run != IMAGENET and not Path(run).is_dir():
        return create_region_encoder(backbone=run, **options)
    if "weights" in options:
        raise ValueError(f"weights: expected no value for a run, got {options['weights']}; {run} has its own weights")
    model = load(run)
    source: Any = model.encoder if isinstance(model, Detector) else model
    config = source.config if isinstance(source, RegionEncoder) else RegionEncoderConfig()
    fields = asdict(replace(config, **options))
    del fields["backbone"], fields["stage"]
    return RegionEncoder(source.backbone, **fields)


def create_service(
    model: Model,
    name: str,
    *,
    runtime: Runtime = "eager",
    limits: Limits,
    workers: int | None = None,
    batch: int | None = None,
    batch_wait: float = 5.0,
    memory: int = 4 * 10**9,
    proposals: str | None = None,
) -> Service:
    """Create the service of a model.

    Args:
        model: model on its device.
        name: display name of the model.
        runtime: what computes the predictions; ``onnx`` only for classifiers on the CPU.
        limits: request limits.
        workers: parallel batches; None: CPU cores up to 4, 2 on a GPU, 1 for a segmenter.
        batch: largest number of images per batch; None: 2 on a CPU, 16 on a GPU.
        batch_wait: milliseconds to wait for requests of similar image size.
        memory: limit in bytes above which a segmenter processes an image in tiles.
        proposals: proposal source of a detector; None: as in training.

    Raises:
        ValueError: an option is out of range, or the model does not support it.
    """
    backbone = model.encoder.backbone if isinstance(model, Detector) else model.backbone
    on_cpu, kind = next(backbone.parameters()).device.type == "cpu", model.config.task
    for option, value in (("workers", workers), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{option}: expected at least 1, got {value}")
    if not batch_wait >= 0:
        raise ValueError(f"batch_wait: expected at least 0 milliseconds, got {batch_wait:g}")
    if runtime == "onnx" and not (on_cpu and isinstance(model, Classifier)):
        raise ValueError("runtime: expected eager or compiled, got onnx; it supports classifiers on the CPU only")
    if proposals and not isinstance(model, Detector):
        noun = "two-stage detector" if kind == "detect" else TASKS[kind].noun
        raise ValueError(f"proposals: expected a detector that takes proposals, got a {noun}; omit --proposals")
    if isinstance(model, Detector) and is_box_file(proposals or model.config.proposals):
        given = proposals or model.config.proposals
        raise ValueError(f"proposals: expected one or more of {', '.join(SOURCES)}, got the box file {given}")
    if isinstance(model, Segmenter) and workers not in (None, 1):
        # Each pass may use all the memory left below the limit, so concurrent passes would exceed it.
        raise ValueError(f"workers: expected 1 for a segmenter, got {workers}; the memory limit is for one pass")
    default_workers = min(_cores(), _MAX_CPU_WORKERS) if on_cpu else _GPU_WORKERS
    workers = workers or (1 if isinstance(model, Segmenter) else default_workers)
    threads = max(1, _cores() // workers)
    padded = not on_cpu and runtime == "eager" and isinstance(model, Classifier) and takes_padding(backbone)

    def make() -> Task:
        if runtime == "compiled":
            torch.set_num_threads(threads)  # of the workers, because graphs are bound to it
            backbone.compile_network()
        task: Task
        if isinstance(model, Classifier):
            onnx = runtime == "onnx"
            task = ClassifyTask(
                model, limits, onnx_probabilities(model, threads) if onnx else torch_probabilities(model, padded)
            )
        elif isinstance(model, Segmenter):
            task = SegmentTask(model, limits, memory)
        elif isinstance(model, Detector | TwoStageDetector):
            task = DetectTask(model, limits, proposals)
        else:
            task = RegionTask(model, limits)
        warm_up(task)
        if runtime == "compiled":
            # Requests that the graphs do not cover run in eager mode and never wait for the compiler.
            torch.compiler.set_stance("eager_on_recompile")
        return task

    most = batch or (_CPU_BATCH if on_cpu else _GPU_BATCH)
    batching = Batching(workers, threads, batch_wait / 1000, most, _MAX_PADDING if padded else 0.0)
    return Service(name, kind, make, runtime, limits, batching)


def _cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
