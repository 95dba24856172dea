"""Options, files and exceptions with which `tests/test_docs.py` runs the documentation pages."""

# Options that override those of a page, by the first words of a command, to train for seconds instead of minutes.
_TINY = "--backbone test_resnet --weights none"
SMALLER = {
    "train classify": "--epochs 2 --batch 4 --devices 1 --workers 0",
    "train classify train.csv": _TINY,
    "train classify DATA --epochs 40": _TINY,
    "train detect": "--epochs 1 --windows 40",
    "train detect VOC --split train --out": "--side 64",
    "train detect DATA --out": "--side 64",
    "train segment": "--epochs 1 --batch 2 --crop 64,64",
    "predict RUN scan.png --out labels --memory": "--memory 8GB",  # the process of the tests uses much of 3 GB
    "compare sizes": f"{_TINY} --epochs 2 --seeds 1 --images-per-class 1 --val-images-per-class 1 --batch 4",
    "compare detectors": f"{_TINY} --epochs 1 --steps 1 --seeds 1 --max-images 2 --windows 8 --proposals grid"
    " --hidden 9,9",
    "export": "--num-sizes 5",
    "verify": "--num-sizes 5",
    "doctor --backbone": "--batch 3",
    "bench": "--shape 1,8,9,11",
    "serve": "--workers 1",
}

# Folders of `library` that the commands of a page expect under another name.
RENAMED = {
    "docs/check.md": {"photos": "DATA/train"},
    "docs/detection.md": {"DATA": "VOC"},
    "docs/segmentation.md": {"DATA": "MASKS"},
    "docs/tutorial.md": {"DATA": "CLASSES"},
}
# Blocks that show a file, by page and language: name of the file.
FILES = {("docs/features.md", "csv"): "boxes.csv", ("docs/features.md", "json"): "boxes.jsonl"}

# Commands of other pages whose results a page needs.
_RUN = f"sppnet train classify DATA --freeze-backbone --out RUN {_TINY}"
PREREQUISITES = {
    "docs/export.md": [_RUN],
    "docs/scale.md": [_RUN],
    "docs/sizes.md": [_RUN],
    "docs/serve.md": [
        _RUN,
        "sppnet train detect VOC --split train --method spp --steps 1 --proposals grid --scales 128 --hidden 16,16"
        " --out DETECTOR",
        "sppnet train segment MASKS --out SEGMENTER",
    ],
}

# Beginning of the warning that the code of a page demonstrates.
WARNS = {"docs/segmentation.md": "ASPP: on a map of 28 x 28 cells"}

# Commands that are not run, by page, with the reason. Those of sppnet must still parse.
_INSTALLS = "installs packages"
_DOWNLOADS = "downloads weights"
_CI = "runs all tests; CI runs it in a fresh clone"
NOT_RUN = {
    ("README.md", 'python3 -m venv .venv && .venv/bin/pip install ".[all]" && .venv/bin/sppnet demo'): _INSTALLS,
    ("README.md", 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/python -m pytest -n 2'): _CI,
    ("CONTRIBUTING.md", 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]"'): _INSTALLS,
    (
        "CONTRIBUTING.md",
        ".venv/bin/ruff check . && .venv/bin/ruff format . && .venv/bin/mypy && .venv/bin/python -m pytest -n 2",
    ): _CI,
    **{
        (page, line): _INSTALLS
        for page in ("docs/install.md", "docs/tutorial.md")
        for line in ("python3 -m venv .venv && . .venv/bin/activate", 'pip install ".[all]"')
    },
    ("docs/install.md", 'pip install ".[serve,export]"'): _INSTALLS,
    ("docs/classify.md", "sppnet train classify DATA --backbone resnet50 --weights hub --out RUN-RESNET50"): _DOWNLOADS,
    ("docs/scale.md", "pip install s3fs"): _INSTALLS,
    **{
        ("docs/scale.md", line): "needs a cluster of several machines"
        for line in (
            "torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint 10.0.0.5:29400 --rdzv-id 1"
            " -m sppnet train classify DATA --train-stages all --out /shared/RUN",
            "sppnet predict RUN photos --engine ray --ray-address auto --out /shared/answers",
            "sppnet predict RUN photos --engine ray --ray-address 10.0.0.5:6379 --out /shared/answers",
        )
    },
    **{
        ("docs/scale.md", line): "needs an object store"
        for line in (
            "sppnet predict RUN s3://bucket/photos --engine ray --ray-address ray://10.0.0.5:10001 --out s3://bucket/answers",
            "sppnet predict s3://bucket/run s3://bucket/photos --engine ray --out s3://bucket/answers",
            "sppnet predict RUN 's3://bucket/photos/2024-*/**/*.jpg' --engine ray --out s3://bucket/answers",
            "sppnet features s3://bucket/photos --boxes s3://bucket/boxes.csv --engine ray --out s3://bucket/vectors",
        )
    },
    **{
        ("docs/serve.md", line): "needs Docker; tests/test_packaging.py checks the Dockerfile"
        for line in (
            "docker build -t sppnet .",
            "docker run --rm -p 8000:8000 sppnet",
            'docker run --rm -p 8000:8000 -v "$PWD:/runs" sppnet serve RUN --host 0.0.0.0',
        )
    },
}
# Run by `pytest -m slow` only, with the reason.
SLOW = {
    ("docs/scale.md", line): "starts Ray"
    for line in (
        "sppnet predict RUN photos --engine ray --out answers",
        "sppnet features photos --boxes boxes.csv --engine ray --out vectors",
        "sppnet predict imagenet photos --engine ray --out imagenet-answers",
        "sppnet predict imagenet photos --engine ray --out imagenet-answers --actors 4 --json > answers.jsonl",
        "from sppnet.io.part_files import read_predictions",
    )
}
