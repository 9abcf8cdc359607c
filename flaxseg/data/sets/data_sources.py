"""Says where the examples of a data set come from, and finds them."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.download import Download, fetch_files
from flaxseg.data.raw.findings import Report
from flaxseg.data.raw.pairs import EncodedExample, Pair, readers
from flaxseg.data.raw.problems import Problem, as_problems, raise_problems
from flaxseg.data.raw.verification import examine
from flaxseg.data.sets.folder import find_pairs, listing_digest
from flaxseg.data.sets.folder_file import FolderFile
from flaxseg.errors import DataError
from flaxseg.paths import readable
from flaxseg.progress import Progress

Readers = Mapping[str, Callable[[], Iterator[EncodedExample]]]
"""For each split, a function that yields its examples."""


@dataclasses.dataclass(frozen=True)
class Request:
    """States how the examples of a data set are to be found.

    Attributes:
      manual_dir: the folder with the published files; None to download them.
      download_dir: where downloads are kept until the data set is prepared.
      command: prepares the data set from a shell.
      allowed: the kinds of problems that are no reason to stop.
      progress: show progress on stderr.
    """

    manual_dir: pathlib.Path | None
    download_dir: pathlib.Path
    command: str
    allowed: frozenset[str] = frozenset()
    progress: bool = True


@dataclasses.dataclass(frozen=True)
class Examples:
    """Holds the examples of a data set, ready to be written.

    Attributes:
      readers: for each split, a function that yields its examples.
      sizes: the number of examples in each split.
      source: where they come from.
      left_out: the number of pairs that cannot be used.
      listing: of the user's own images, a digest of which files there are; else "".
      absent: of the user's own images, the classes without a pixel in each split.
    """

    readers: Readers
    sizes: dict[str, int]
    source: str
    left_out: int = 0
    listing: str = ""
    absent: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Files:
    """Holds image and label files that were found but not checked yet.

    Attributes:
      info: the facts of the data set.
      pairs: the pairs of each split.
      problems: what is wrong with lists and folders.
      folder: where the files are.
      source: where they come from.
      are_own: whether they are the user's own, of which every class must be there to train on.
    """

    info: DatasetInfo
    pairs: Mapping[str, Sequence[Pair]]
    problems: Sequence[Problem | str]
    folder: pathlib.Path
    source: str
    are_own: bool = False

    def check(self, progress: bool, num_threads: int | None = None) -> Report:
        """Reads all files and reports what is wrong with them; arguments as for `examine`."""
        total = sum(map(len, self.pairs.values()))
        with Progress(f"checking {self.info.name}", total, enabled=progress) as shown:
            return examine(
                self.pairs,
                self.info,
                source=self.source,
                known=as_problems(self.problems),
                trained_on=self.info.train_split if self.are_own else "",
                advance=shown.advance,
                num_threads=num_threads,
            )

    def examples(self, request: Request, advice: str) -> Examples:
        """Checks all files and returns the examples that can be used.

        Args:
          request: which problems are allowed.
          advice: what to do about files that cannot be used.

        Raises:
          DataError: there are other problems, all of them listed, or a split is left empty.
        """
        name, report = self.info.name, self.check(request.progress)
        # What is trained on is known in the training, see `check_trainable`.
        allowed = {*request.allowed, "absent_class"}
        refused = [problem for problem in report.errors if problem.kind not in allowed]
        usable = {
            split: [pair for n, pair in enumerate(of_split) if n not in report.unusable[split]]
            for split, of_split in self.pairs.items()
        }
        empty = [split for split, of_split in usable.items() if not of_split]
        if refused and not empty:
            kinds = ",".join(dict.fromkeys([*sorted(request.allowed), *(p.kind for p in refused)]))
            advice += (
                " To continue without what cannot be used: "
                f"{request.command} --allow_problems={kinds} (train: "
                f"--config.data.allow_problems={kinds})"
            )
        raise_problems(name, refused, advice)
        if empty:
            raise DataError(
                f"data set {name!r} cannot be prepared: nothing in {', '.join(empty)} can be used"
            )
        sizes = {split: len(of_split) for split, of_split in usable.items()}
        left_out = sum(map(len, self.pairs.values())) - sum(sizes.values())
        absent = {
            split: counted.absent(self.info.class_names)
            for split, counted in report.statistics.items()
            if self.are_own
        }
        return Examples(readers(usable, self.folder), sizes, self.source, left_out, absent=absent)


@dataclasses.dataclass(frozen=True)
class Generated:
    """Draws the examples of a data set.

    Attributes:
      info: its facts.
      readers: returns, for each split, a function that yields its examples.
    """

    info: DatasetInfo
    readers: Callable[[], Readers]

    def find(self, request: Request) -> Examples:
        """Returns the examples."""
        del request
        return Examples(self.readers(), dict(self.info.split_sizes), "generated")


@dataclasses.dataclass(frozen=True)
class Published:
    """Makes a data set of published files.

    Attributes:
      info: its facts.
      find_pairs: called with a folder that holds the published archives, or what they unpack to,
        and whether to show the progress of reading them; returns the pairs of each split and what
        is wrong with its lists. Problems of files show when they are read. Raises DataError where
        the folder lacks a part, or an archive is damaged or hostile.
      downloads: the archives that may be downloaded.
      how_to_get: where there are none, how to get the files.
    """

    info: DatasetInfo
    find_pairs: Callable[
        [pathlib.Path, bool], tuple[Mapping[str, Sequence[Pair]], Sequence[Problem | str]]
    ]
    downloads: tuple[Download, ...] = ()
    how_to_get: str = ""

    def files(self, folder: pathlib.Path, progress: bool = False, source: str = "") -> Files:
        """Finds the files in a folder; progress is shown where an archive is read through."""
        if not folder.is_dir():
            raise DataError(
                f"{self.info.name}: manual_dir {folder} is not a folder; give the folder with the "
                "archives as downloaded, or with what was unpacked from them"
            )
        pairs, problems = self.find_pairs(folder, progress)
        return Files(self.info, pairs, problems, folder, source or readable(folder.resolve()))

    def find(self, request: Request) -> Examples:
        """Finds and checks the files, downloaded where no folder is given; raises DataError."""
        name, folder = self.info.name, request.manual_dir
        if folder is not None:
            return self.files(folder, request.progress).examples(request, _mend_in(folder))
        if not self.downloads:
            raise DataError(
                f"data set {name!r} cannot be downloaded by a program. {self.how_to_get}: "
                f"python -m flaxseg prepare-data {name} --manual_dir=FOLDER (train: "
                "--config.data.manual_dir)"
            )
        fetch_files(self.downloads, request.download_dir, name, request.progress)
        source = ", ".join(file.url for file in self.downloads)
        files = self.files(request.download_dir, request.progress, source)
        return files.examples(
            request,
            "The published files are not as expected; give your own copy with --manual_dir.",
        )


@dataclasses.dataclass(frozen=True)
class OwnFolder:
    """Makes a data set of a folder of the user's own images and masks.

    Attributes:
      info: its facts.
      file: the `dataset.toml` that states them.
    """

    info: DatasetInfo
    file: FolderFile

    @property
    def folder(self) -> pathlib.Path:
        """Returns the folder that holds the file."""
        return self.file.path.parent

    def listing(self) -> str:
        """Returns a digest of which files there are."""
        return listing_digest(self.file, self.info)

    def files(self) -> Files:
        """Finds the files."""
        pairs, problems = find_pairs(self.file, self.info)
        source = readable(self.folder.resolve())
        return Files(self.info, pairs, problems, self.folder, source, are_own=True)

    def find(self, request: Request) -> Examples:
        """Finds and checks the files; raises DataError."""
        listing = self.listing()  # before: a file that changes meanwhile is noticed next time
        found = self.files().examples(request, _mend_in(self.folder))
        return dataclasses.replace(found, listing=listing)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Stands for a folder of prepared records, `info.prepared`, whose images are elsewhere."""

    info: DatasetInfo


Source = Generated | Published | OwnFolder | Prepared


def _mend_in(folder: pathlib.Path) -> str:
    return f"Correct or replace these files in {folder} and prepare again; nothing was written."
