"""Holds the default of every field; `flaxseg.training.config.default_config` says what each means.

A recipe of your own: copy `deeplab.py`, change what differs, and run

    flaxseg train ./mine.py --workdir=runs/mine

Any field can be set on the command line, such as `--config.optimizer.learning_rate=0.02` or
`--config.data.crop_size=321,321`.
"""

from ml_collections import config_dict

from flaxseg.training.config import default_config


def get_config() -> config_dict.ConfigDict:
    return default_config()
