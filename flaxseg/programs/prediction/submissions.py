"""Writes predictions as the evaluation servers of Cityscapes, PASCAL VOC and ADE20K expect them.

* Cityscapes: PNGs of published label ids, 1024 x 2048, found by CITY_NUMBER_NUMBER at the start of
  their names (cityscapesScripts, `evaluation/evalPixelLevelSemanticLabeling.py`).
* VOC 2012: PNGs of class indices with VOC's palette, in the folder of the competition, here
  `comp6`: any data but VOC's own test images may have been used for training (development kit,
  "Segmentation Task").
* ADE20K: PNGs of the ids 1 to 150, named like the images (development kit of the scene parsing
  challenge 2016, "Submission format").
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flaxseg import data
from flaxseg.classes import check_same_classes, voc_colors
from flaxseg.data.raw.label_map import LabelMap
from flaxseg.drawing.images import save_grey_png, save_palette_png
from flaxseg.errors import DataError, listed
from flaxseg.inference.segmenter import Segmentation
from flaxseg.programs.prediction.output_names import ImageTask

KIND = "submission"


@dataclasses.dataclass(frozen=True)
class Submission:
    """Describes what one server expects.

    Attributes:
      data: name of the data set whose classes are predicted.
      folder: folder of the files, below the output folder.
      image_name: regular expression for the name of an image without suffix; its group `id` is
        kept.
      example: name of an image, as an example.
      ending: what follows the id in the name of a result.
      size: (height, width) of every image, or None if they differ.
      palette: whether results also hold VOC's colours.
      sizes: number of images in the splits that the server takes, where that is published.
      pack: the command that makes the archive to send, with {out} for the output folder.
    """

    data: str
    folder: str
    image_name: str
    example: str
    ending: str
    size: tuple[int, int] | None
    palette: bool
    sizes: Mapping[str, int]
    pack: str

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Raises ConfigError unless the names are the classes of the data set, in its order."""
        wanted = data.dataset_info(self.data).class_names
        advice = "its predictions cannot be submitted."
        check_same_classes(class_names, self.data, wanted, advice)

    def plan_tasks(
        self, sources: Iterable[pathlib.Path], out: str | os.PathLike
    ) -> list[ImageTask]:
        """Returns what is to be written.

        Raises:
          DataError: images are not named like those of the data set; all are counted, and the first
            ones named.
        """
        folder = pathlib.Path(os.path.abspath(out)) / self.folder
        sources = list(sources)
        tasks, bad = [], []
        for source in sources:
            match = re.fullmatch(self.image_name, source.stem)
            if match is None:
                bad.append(source)
                continue
            file = folder / f"{match['id']}{self.ending}.png"
            tasks.append(ImageTask(source, {KIND: file}, [file]))
        if bad:
            raise DataError(
                f"{len(bad)} of {len(sources)} images are not named like those of {self.data}, "
                f"such as {self.example}, so the server would not find their results: "
                f"{listed(bad)}. Give the images under their published names."
            )
        return tasks

    def write(self, files: Mapping[str, os.PathLike], result: Segmentation) -> np.ndarray:
        """Writes the result of an image, and returns the classes.

        Raises:
          DataError: the image has another size than those of the data set.
        """
        size = result.image.shape[:2]
        if self.size is not None and size != self.size:
            raise DataError(
                f"is {size[0]} x {size[1]} (height x width), and the server expects "
                f"results of {self.size[0]} x {self.size[1]}; give the image as published."
            )
        pred = result.classes
        ids = LabelMap(data.dataset_info(self.data).label_map).to_raw(pred, ignored=0)
        if self.palette:
            save_palette_png(files[KIND], ids, voc_colors(256))
        else:
            save_grey_png(files[KIND], ids)
        return pred


SUBMISSIONS = {
    "cityscapes": Submission(
        data="cityscapes",
        folder="cityscapes",
        image_name=r"(?P<id>[^_]+_\d{6}_\d{6})_leftImg8bit",
        example="berlin_000000_000019_leftImg8bit.png",
        ending="_pred",
        size=(1024, 2048),
        palette=False,
        sizes={"test": 1525, "val": 500},
        pack="(cd {out}/cityscapes && zip -qr ../cityscapes.zip .)",
    ),
    "voc": Submission(
        data="voc_segmentation",
        folder="results/VOC2012/Segmentation/comp6_test_cls",
        image_name=r"(?P<id>20(0[7-9]|1[0-2])_\d{6})",
        example="2008_000006.jpg",
        ending="",
        size=None,
        palette=True,
        sizes={"test": 1456},
        pack="tar -C {out} -czf {out}/voc.tgz results",
    ),
    "ade20k": Submission(
        data="ade20k",
        folder="ade20k",
        image_name=r"(?P<id>ADE_(test|val)_\d{8})",
        example="ADE_test_00000001.jpg",
        ending="",
        size=None,
        palette=False,
        sizes={"val": 2000},
        pack="(cd {out}/ade20k && zip -qr ../ade20k.zip .)",
    ),
}
"""The submissions by the name that `--submission` takes."""
