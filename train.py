"""Trains a model: `python train.py --config=configs/deeplab.py:data=shapes --workdir=runs/shapes`.

The same as `flaxseg train deeplab:data=shapes --workdir=runs/shapes`, from a clone that is not
installed; see `flaxseg/programs/train.py`.
"""

import sys

from flaxseg.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    sys.exit(main())
