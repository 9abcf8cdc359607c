"""`ade20k`: scenes of all kinds, 150 classes, as in the scene parsing challenge of 2016.

The folder holds `ADEChallengeData2016.zip`, or what it unpacks to, `ADEChallengeData2016/` with
`images/{training,validation}/` and `annotations/{training,validation}/`. In the labels, 0 is what
belongs to none of the classes and is ignored; class i has id i + 1.
"""

import pathlib

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.file_tree import nothing_found, open_tree, pair_up
from flaxseg.data.raw.pairs import Pair
from flaxseg.data.sets.ade20k_classes import CLASSES

ARCHIVE = "ADEChallengeData2016.zip"
URL = f"http://data.csail.mit.edu/places/ADEchallenge/{ARCHIVE}"
DIGEST = "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"

INFO = DatasetInfo(
    name="ade20k",
    version="1.0.0",
    description="Scenes of all kinds, 150 classes of objects and stuff (scene parsing challenge "
    "2016).",
    class_names=tuple(name for name, _ in CLASSES),
    class_colors=tuple(color for _, color in CLASSES),
    label_map={0: IGNORE_LABEL, **{i + 1: i for i in range(150)}},
    splits=("train", "val"),
    split_sizes={"train": 20210, "val": 2000},
    eval_split="val",
    license="Annotations: BSD 3-Clause. Images: for non-commercial research and education, under "
    "the terms of ADE20K (https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/).",
    citation="B. Zhou, H. Zhao, X. Puig, S. Fidler, A. Barriuso, A. Torralba. Scene Parsing "
    "through ADE20K Dataset. CVPR, 2017.",
    homepage="http://sceneparsing.csail.mit.edu",
)

_FOLDERS = {"train": "training", "val": "validation"}


def find_pairs(
    folder: pathlib.Path, progress: bool = False
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Pairs images and labels by name; see `Published.find_pairs`."""
    del progress
    tree = open_tree(
        folder,
        roots=("", "ADEChallengeData2016"),
        marker="annotations",
        archive=ARCHIVE,
        prefix="ADEChallengeData2016/",
        parts=("images/", "annotations/"),
    )
    pairs = {}
    if tree is not None:
        for split, part in _FOLDERS.items():
            pairs[split] = pair_up(
                tree, f"images/{part}", ".jpg", tree, f"annotations/{part}", ".png"
            )
    missing = [_FOLDERS[split] for split in INFO.splits if not pairs.get(split)]
    if missing:
        wanted = " and ".join(f"images/{part} and annotations/{part}" for part in missing)
        raise nothing_found(
            INFO.name, folder, [f"{ARCHIVE} ({URL}), or ADEChallengeData2016/ with {wanted}"]
        )
    return pairs, []
