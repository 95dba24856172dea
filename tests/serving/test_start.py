"""The model to serve, and the options of its service."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sppnet.backbones.backbone import create_backbone
from sppnet.detect.model import Detector, DetectorConfig
from sppnet.features.encoder import RegionEncoder
from sppnet.segment.model import create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.serving.limits import Limits
from sppnet.serving.start import create_service, load_model
from sppnet.training.run import save
from tests.helpers.hostile_clients import save_small_classifier

# Runs in a subprocess without shape checks, which would break graphs.
COMPILED = """
import io, sys, torch
from PIL import Image
from sppnet.registry import load
from sppnet.segment.model import create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.serving.limits import Limits
from sppnet.serving.start import create_service
from sppnet.serving.uploads import answer_uploads
from sppnet.serving.batcher import Batcher
from sppnet.segment.model import create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.serving.limits import Limits

def photograph(width, height):
    file = io.BytesIO()
    Image.effect_noise((width, height), 60).save(file, "PNG")
    return file.getvalue()

torch.set_num_threads(2)
task = create_service(load(sys.argv[1]), "run", runtime="compiled", limits=Limits(), workers=999)._make()
batcher, counted = Batcher(answer_uploads, threads=1), torch._dynamo.utils.counters["stats"]
graphs = counted["unique_graphs"]
for stance, size in (("fail", (640, 480)), ("fail", (511, 333)), ("eager", (131, 97))):
    torch.compiler.set_stance(f"{stance}_on_recompile")
    query = task.predict(photograph(*size))
    batcher.submit(query, query.key, query.size).result()
batcher.close()
print(graphs > 0, counted["unique_graphs"] - graphs)
"""


@pytest.mark.slow
def test_workers_reuse_the_graphs_of_the_warm_up(tmp_path: Path) -> None:
    """They use one thread although the process has two, and run in eager mode where no graph fits."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(save_small_classifier(tmp_path))],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.split() == ["True", "0"], done.stderr


def test_regions_of_a_detector_use_its_settings_by_default(tmp_path: Path) -> None:
    config = DetectorConfig(("cup",), backbone="zf5", levels=(2, 1), scales=(120,), max_side=300, rule="roi_pool")
    save(Detector(config, create_backbone("zf5")), tmp_path)

    def settings(**options: Any) -> tuple[object, ...]:
        encoder = load_model(str(tmp_path), regions=True, **options)
        assert isinstance(encoder, RegionEncoder)
        return encoder.levels, encoder.scales, encoder.max_side, encoder.rule

    assert settings() == ((2, 1), (120,), 300, "roi_pool")
    assert settings(levels=(3,)) == ((3,), (120,), 300, "roi_pool")
    assert settings(scales=(130,)) == ((2, 1), (130,), 300, "roi_pool")


def test_segmenters_have_one_worker() -> None:
    model = create_segmenter(SegmenterConfig(("sky", "road"), "mobilenetv2_035", width=8, rates=(1, 2)), "none")
    assert create_service(model, "run", limits=Limits())._batching.workers == 1
    with pytest.raises(ValueError, match="workers: expected 1 for a segmenter, got 2"):
        create_service(model, "run", limits=Limits(), workers=2)


@pytest.mark.parametrize("regions", [False, True])
def test_serves_a_saved_region_encoder(tmp_path: Path, regions: bool) -> None:
    saved = RegionEncoder(create_backbone("zf5", None, "none"), (2, 1), (120,), 300, "roi_pool")
    save(saved, tmp_path)
    encoder = load_model(str(tmp_path), regions)
    assert isinstance(encoder, RegionEncoder)
    assert encoder.config == saved.config
    service = create_service(encoder, "run", limits=Limits(), workers=1)
    assert service.kind == "features"
