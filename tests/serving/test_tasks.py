"""Server tasks: batches, cancellation, memory limits and warm-up."""

from concurrent.futures import CancelledError

import pytest

from sppnet.backbones.backbone import Backbone
from sppnet.classify.model import Classifier
from sppnet.detect.model import Detector
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.memory import pass_bytes
from sppnet.segment.memory import whole_fits
from sppnet.segment.model import Segmenter, create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.serving.app import Batching, Service
from sppnet.serving.limits import Limits
from sppnet.serving.runtimes import torch_probabilities
from sppnet.serving.tasks import ClassifyTask, DetectTask, RegionTask, SegmentTask, Task, warm_up
from tests.helpers.web_clients import LIMITS, client, photograph, post, refusal, wait_ready

pytest_plugins = ("tests.helpers.web_clients",)


@pytest.fixture
def _no_memory_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count only the memory of passes: the memory of this process depends on other tests."""
    monkeypatch.setattr("sppnet.segment.memory.settled_bytes", lambda: 0)


def test_photographs_beyond_the_memory_limit_are_refused(segmenter: Segmenter) -> None:
    with client(SegmentTask(segmenter, LIMITS, 10**6)) as web:
        wait_ready(web)
        assert "memory: " in refusal(post(web, "/v1/predict"), 422, "too_many_pixels")


def test_failed_warm_up_is_reported_as_an_invalid_option(segmenter: Segmenter) -> None:
    def make() -> Task:
        task = SegmentTask(segmenter, Limits(), 10**6)
        warm_up(task)
        return task

    service = Service("run", "segment", make, "eager", LIMITS, Batching())
    service.start()
    assert isinstance(service.error, ValueError)
    service.stop()


def test_segmentation_batch_matches_single_images(segmenter: Segmenter) -> None:
    task = SegmentTask(segmenter, LIMITS, 2**35)
    uploads = [task.predict(photograph(64, 48, seed)) for seed in range(3)]
    single = [upload.answer([upload])[0] for upload in uploads]
    assert len({answer["mask"] for answer in single}) == 3  # type: ignore[call-overload]
    assert list(uploads[0].answer(uploads)) == single


@pytest.mark.usefixtures("_no_memory_in_use")
def test_batches_beyond_the_memory_limit_are_split() -> None:
    segmenter = create_segmenter(SegmenterConfig(("sky", "tree"), "test_efficientnet", width=16, rates=(1, 2)), "none")
    memory = pass_bytes(segmenter, 512, 512) + 70_000_000
    assert not whole_fits(segmenter, 8 * 512, 512, memory)
    for batch_size, limit in ((8, 2**35), (1, memory)):
        task = SegmentTask(segmenter.eval(), Limits(), limit)
        uploads = [task.predict(photograph(512, 512)) for _ in range(8)]
        uploads[0].answer(uploads)  # caches the memory of a pass, which is counted in another pass
        passes: list[int] = []
        with segmenter.register_forward_pre_hook(lambda _, inputs, passes=passes: passes.append(len(inputs[0]))):
            uploads[0].answer(uploads)
        assert passes == [batch_size] * (8 // batch_size)


@pytest.mark.usefixtures("_no_memory_in_use")
def test_tiling_stops_when_the_client_disconnects(segmenter: Segmenter) -> None:
    task = SegmentTask(segmenter, Limits(), pass_bytes(segmenter, 512, 512) + 20_000_000)
    upload = task.predict(photograph(1_500, 1_500))
    devices: list[str] = []
    with segmenter.register_forward_pre_hook(lambda _, inputs: devices.append(inputs[0].device.type)):
        upload.answer([upload])
        tiles = devices.count("cpu")  # passes on the meta device only count memory
        assert tiles > 3
        upload.gone.set()
        with pytest.raises(CancelledError):
            upload.answer([upload])
    assert devices.count("cpu") == tiles + 1


def test_every_task_warms_up(
    classifier: Classifier, detector: Detector, segmenter: Segmenter, backbone: Backbone
) -> None:
    limits = Limits()
    warm_up(ClassifyTask(classifier, limits, torch_probabilities(classifier)))
    warm_up(DetectTask(detector, limits))
    warm_up(SegmentTask(segmenter, limits, 2**35))
    warm_up(RegionTask(RegionEncoder(backbone, (1,), (120,)), limits))
