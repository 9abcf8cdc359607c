"""What the TFDS builders of all data sets share: the features, and encoded bytes in, so that
TensorFlow is never needed.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from flaxseg.data.info import DatasetInfo


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """One picture and its label as the bytes of their files.

    Attributes:
      id: unique within the data set.
      image: bytes of a JPEG or PNG.
      label: bytes of a PNG that holds raw label ids.
      image_file, label_file: where the bytes come from, for messages, as a place in the folder of
        the data set; "" when generated.
    """

    id: str
    image: bytes
    label: bytes
    image_file: str = ""
    label_file: str = ""


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes pictures and labels in ArrayRecord form.

    A subclass states `INFO` and is registered with TFDS under its own class name.
    """

    INFO: DatasetInfo
    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look beside the code for files of checksums and tags, with a package that it does
    # not require.
    code_path = None

    def __init__(
        self,
        *,
        examples: dict[str, Callable[[], Iterator[EncodedExample]]] | None = None,
        **kwargs,
    ):
        """Takes per split what yields its examples (only to prepare); the rest goes to TFDS."""
        self._examples = examples
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.INFO.description,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), dtype=np.uint8),
                    "label": tfds.features.Image(
                        shape=(None, None, 1), dtype=np.uint8, encoding_format="png"
                    ),
                    "id": tfds.features.Text(),
                    "image_file": tfds.features.Text(),
                    "label_file": tfds.features.Text(),
                }
            ),
            homepage=self.INFO.homepage,
            citation=self.INFO.citation,
            license=self.INFO.license,
            disable_shuffling=True,  # records keep the order of the published lists
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager
        assert self._examples is not None, "the examples are given to prepare only"
        return {split: self._generate_examples(make) for split, make in self._examples.items()}

    def _generate_examples(self, make: Callable[[], Iterator[EncodedExample]]) -> Iterator[tuple]:
        for number, example in enumerate(make()):
            yield number, dataclasses.asdict(example)
