"""The report on a data set as files: text, JSON, and a picture."""

import json
import os
import pathlib

from flaxseg.data import Report
from flaxseg.drawing.data_report import draw_report
from flaxseg.drawing.images import save_picture
from flaxseg.errors import DataError


def write_report(report: Report, out: pathlib.Path) -> list[pathlib.Path]:
    """Writes `report.txt`, `report.json` and `report.png` and returns their paths.

    Args:
      report: of `flaxseg.data.verify_data`.
      out: a folder, which exists.

    Raises:
      DataError: nothing can be written there.
    """
    texts = {
        "report.txt": report.text() + "\n",
        "report.json": json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n",
    }
    written = []
    try:
        for name, text in texts.items():
            part = out / f".{name}.part"
            part.write_text(text, encoding="utf-8")
            os.replace(part, out / name)
            written.append(out / name)
        written.append(out / "report.png")
        save_picture(written[-1], draw_report(report))
    except OSError as error:
        raise DataError(f"could not write to {out}: {error.strerror or error}.") from error
    return written
