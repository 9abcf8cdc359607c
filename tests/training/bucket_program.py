"""`tiny_program.py` whose gs:// is a folder.

python bucket_program.py FOLDER --config=... --workdir=gs://...
"""

import pathlib
import runpy
import sys

import bucket

if __name__ == "__main__":
    bucket.install(pathlib.Path(sys.argv.pop(1)))
    runpy.run_path(str(pathlib.Path(__file__).with_name("tiny_program.py")), run_name="__main__")
