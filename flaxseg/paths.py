"""Checks paths on this machine and in buckets of Google Cloud Storage, and makes names of files.

What is under a path that begins with gs:// is reached through `etils.epath`.
"""

import hashlib
import importlib.util
import os
import pathlib
import re

PathLike = str | os.PathLike

_LONGEST = 60  # letters of a name, which may have four bytes each
_PLAIN = re.compile(r"[\w-][\w.-]*")
_NOT_PLAIN = re.compile(r"^\.|[^\w.-]+")
_BUCKETS = "gs://"

# One letter is a drive, and a data set has a name such as folder:/home/me/images.
_SCHEME = re.compile(r"(?!folder:)([A-Za-z][A-Za-z0-9+.-]+):/")


def is_remote(path: PathLike) -> bool:
    """Returns whether a path is in a bucket."""
    return os.fspath(path).startswith(_BUCKETS)


def as_path(path: PathLike) -> pathlib.Path:
    """Returns an absolute path, or one in a bucket, which has the same methods for most purposes.

    The functions of `flaxseg.files` are for the others: to delete, to rename, and to write.
    """
    if not is_remote(path):
        return pathlib.Path(os.path.abspath(path))
    from etils import epath  # of an extra

    return epath.Path(os.fspath(path))


def any_path(path: PathLike) -> str:
    """Returns "" for a path here or in a bucket that can be reached, else what is wanted, as
    `local_path`."""
    text = os.fspath(path)
    if not is_remote(text):
        return local_path(text)
    if not re.match(r"gs://[^/\0]+/[^/\0][^\0]*$", text):
        return "gs://BUCKET/FOLDER"
    if _reaches_buckets():
        return ""
    return (
        "a path on this machine, because what reaches gs:// is not installed; it comes with: "
        'pip install "flaxseg[gcs]"'
    )


def local_path(path: PathLike) -> str:
    """Returns "" for a path that this machine can have, else what is wanted, after "it must be".

    >>> local_path("runs/camvid")
    ''
    >>> local_path("s3://bucket/run")
    'a path on this machine; mount the storage of s3:// as a folder and give that'
    """
    text = os.fspath(path)
    wanted = local_text(text)
    if wanted:
        return wanted
    try:
        pathlib.Path(text).expanduser().lstat()
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:  # a long name, an unknown ~user, NUL
        return f"a path that this machine can have ({getattr(error, 'strerror', None) or error})"
    return ""


def local_text(text: str) -> str:
    """Returns "" for a text that is not the path of another machine's file, nor cut short by a NUL
    character; else what is wanted, as `local_path`."""
    scheme = _SCHEME.match(text)
    if scheme:
        return (
            f"a path on this machine; mount the storage of {scheme[1]}:// as a folder and give that"
        )
    return "a text without NUL characters" if "\0" in text else ""


def utf_8_path(path: PathLike) -> str:
    """Returns "" for a path on this machine that is UTF-8, else what is wanted, as `local_path`."""
    if not is_readable(path):
        return "a path in UTF-8; rename the folder, or give a link to it"
    return local_path(path)


def local_folder(path: PathLike) -> str:
    """Returns "" for the path of a folder, there or not, else what is wanted, as `local_path`."""
    wanted = local_path(path)
    if not wanted and path and pathlib.Path(path).expanduser().is_file():
        return "a folder, and it is a file"
    return wanted


def file_name(subject: str) -> str:
    """Returns a name without suffix for a file about a subject, such as the id of an image.

    It depends on the subject alone, and differs for different ones: what cannot be kept is replaced
    by a digest.

    >>> file_name("val/street_1"), file_name("a b")
    ('val__street_1', 'a_b-c8687a08')
    """
    parts = subject.split("/")
    name = "__".join(parts)
    if len(name) <= _LONGEST and _PLAIN.fullmatch(name) and name.split("__") == parts:
        return name
    digest = hashlib.sha256(subject.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{_NOT_PLAIN.sub('_', name)[:_LONGEST]}-{digest}"


def readable(path: PathLike) -> str:
    r"""Returns a path as text that can be printed and written, even where it is not UTF-8.

    >>> print(readable(os.fsdecode(b"caf\xe9.png")))
    caf\xe9.png
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_readable(path: PathLike) -> bool:
    """Returns whether a path is UTF-8, so that it can be printed and written as it is."""
    return readable(path) == os.fspath(path)


def _reaches_buckets() -> bool:
    """Returns whether the packages are there with which `etils.epath` reads and writes buckets."""
    has = {name: importlib.util.find_spec(name) for name in ("etils", "gcsfs", "tensorflow")}
    return bool(has["etils"] and (has["gcsfs"] or has["tensorflow"]))
