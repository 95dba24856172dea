"""Compare images per second of this package with plain PyTorch and timm loops, on a quiet and on a busy machine.

    python benchmarks/throughput.py predict IMAGES [--busy 1]
    python benchmarks/throughput.py train CLASSES [--busy 1]
    python benchmarks/throughput.py segment MASKS

``predict`` times `predict` and the vectors of a frozen backbone on IMAGES, a folder, against the embedded network in a
loop with torch's default threads. ``train`` times an epoch of training the whole network on the class folders CLASSES
against a loop with equal batches. Each round runs all candidates in turn. ``segment`` times epochs of
``sppnet train segment`` alone and beside a busy process. ``--busy N`` keeps N processes busy meanwhile.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from PIL import Image
from rich.table import Table
from torch import Tensor, nn
from torchvision.transforms import functional as transforms

from sppnet.backbones.weights import embedded_weights
from sppnet.classify.batches import ImageBatches
from sppnet.classify.model import Classifier, imagenet_classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.predict import predict_images
from sppnet.classify.vectors import compute_vectors
from sppnet.cli.console import results
from sppnet.data.formats.classification import Sample, choose_classification_split, read_classification
from sppnet.data.listing import list_images
from sppnet.training.loop import fit

NAME = "tf_efficientnet_lite0"
MEAN = STD = (0.5, 0.5, 0.5)
BATCH, SIDE = 32, 224

Candidates = dict[str, Callable[[], None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["predict", "train", "segment"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=500, help="number of images; of segment, all are used")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0, help="number of busy processes")
    arguments = parser.parse_args()
    if arguments.what == "segment":
        show_segment(arguments.data, arguments.rounds)
        return
    make = predict_candidates if arguments.what == "predict" else train_candidates
    with tempfile.TemporaryDirectory() as folder:
        candidates = make(arguments.data, arguments.images, Path(folder))
        with busy(arguments.busy):
            show(candidates, arguments.rounds)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep a number of processes busy, each with one thread."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


def show(candidates: Candidates, rounds: int) -> None:
    """Time the candidates in turn, and print the seconds and the ratio of the first one to each in the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
    first = next(iter(seconds.values()))
    table = Table("", "seconds", "speed, median (quartiles)", title=f"{torch.get_num_threads()} threads")
    for name, times in seconds.items():
        ratios = [plain / own for plain, own in zip(first, times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        table.add_row(name, f"{statistics.median(times):.2f}", f"{middle:.2f} ({low:.2f} - {high:.2f})")
    results.print(table)


def predict_candidates(data: Path, count: int, folder: Path) -> Candidates:
    images = list_images(data)
    paths = (images * -(-count // len(images)))[:count]
    network = plain_network(1000)
    state = embedded_weights(network.blocks)  # type: ignore[arg-type]
    network.load_state_dict({**network.state_dict(), **state})
    model = imagenet_classifier()
    frozen = Classifier(ClassifierConfig(("a", "b")), model.backbone).eval()
    samples = [Sample(path, 0) for path in dict.fromkeys(paths)]

    def vectors() -> None:
        # Repeated images would be computed once.
        for _ in range(-(-len(paths) // len(samples))):
            part = tempfile.mkdtemp(dir=folder)
            compute_vectors(frozen, samples, frozen.resize, Path(part), "vectors")

    def predict() -> None:
        for _ in predict_images(model, paths, resize="native"):
            pass

    if len(samples) < len(paths):
        paths = [sample.path for sample in samples] * -(-len(paths) // len(samples))
    return {
        "timm, one image at a time": partial(plain_predict, network, paths, 1),
        "timm, batches of equal size": partial(plain_predict, network, paths, BATCH),
        "predict": predict,
        "frozen features": vectors,
    }


def plain_network(classes: int) -> nn.Module:
    network: nn.Module = timm.create_model(NAME, pretrained=False, num_classes=classes)
    return network.eval()


def plain_image(path: Path) -> Tensor:
    with Image.open(path) as image:
        return normalized(image.convert("RGB"))


def normalized(image: Image.Image) -> Tensor:
    tensor: Tensor = transforms.normalize(transforms.to_tensor(image), MEAN, STD)
    return tensor


@torch.inference_mode()
def plain_predict(network: nn.Module, paths: Sequence[Path], batch: int) -> None:
    """Classify images in a loop; in batches, those of equal size after sorting by size."""
    if batch == 1:
        for path in paths:
            network(plain_image(path)[None]).softmax(1).topk(5)
        return
    by_size = sorted(paths, key=image_size)
    for _, group in groupby(by_size, image_size):
        same = list(group)
        for start in range(0, len(same), batch):
            network(torch.stack([plain_image(path) for path in same[start : start + batch]])).softmax(1).topk(5)


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def train_candidates(data: Path, count: int, folder: Path) -> Candidates:
    split = read_classification(data, choose_classification_split(data, None, "train"))
    samples = split.samples[:: max(1, len(split.samples) // count)][:count]
    classes = len(split.classes)
    options = ClassifyOptions(train_stages="all", batch=BATCH, sizes=str(SIDE), epochs=1, device="cpu")
    fabric = Fabric(accelerator="cpu", devices=1)

    def train() -> None:
        model = Classifier(ClassifierConfig(split.classes), imagenet_classifier().backbone)
        out = Path(tempfile.mkdtemp(dir=folder))
        batches = ImageBatches(samples, model.backbone, options, out / "sizes.json", fabric)
        model.to(memory_format=torch.channels_last)
        fit(model, batches, options, out, lambda: None, [], fabric=fabric)

    return {"PyTorch loop": partial(plain_train, samples, classes), "sppnet": train}


def plain_train(samples: Sequence[Sample], classes: int) -> None:
    """Train for an epoch on crops of the same size, in batches of the same size."""
    network = plain_network(classes).train()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-4)
    order = torch.randperm(len(samples)).tolist()
    for start in range(0, len(order), BATCH):
        part = [samples[index] for index in order[start : start + BATCH]]
        x = torch.stack([plain_crop(sample.path) for sample in part])
        loss = F.cross_entropy(network(x), torch.tensor([sample.label for sample in part]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def plain_crop(path: Path) -> Tensor:
    """Return a random crop of 7/8 of the shorter side."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    side = max(min(rgb.size) * 7 // 8, 1)
    left, top = (int(torch.randint(length - side + 1, ())) for length in rgb.size)
    resized = rgb.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return normalized(resized)


def show_segment(data: Path, rounds: int) -> None:
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(segment_epoch(data))
        with busy(1):
            beside.append(segment_epoch(data))
    ratios = [slow / quick for slow, quick in zip(beside, alone, strict=True)]
    results.print(f"alone {statistics.median(alone):.1f} s, beside a busy process {statistics.median(beside):.1f} s,")
    results.print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})")


def segment_epoch(data: Path) -> float:
    """Return the seconds of the second of two epochs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sppnet", "train", "segment", data, "--out", folder, "--epochs", "2"]
        subprocess.run([*map(str, command), "--quiet"], check=True, capture_output=True)
        lines = Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds: float = json.loads(lines[1])["seconds"]
    return seconds


if __name__ == "__main__":
    main()
