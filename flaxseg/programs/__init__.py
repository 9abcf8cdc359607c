"""Implements the commands of `python -m flaxseg`, one file each: name, help, flags and work."""

from flaxseg.programs import (
    evaluate,
    export,
    import_weights,
    learn_basis,
    models,
    predict,
    prepare_data,
    prune,
    report,
    results,
    show_data,
    tune_crf,
    verify_data,
)

COMMANDS = (
    evaluate,
    report,
    results,
    predict,
    export,
    import_weights,
    prune,
    learn_basis,
    tune_crf,
    models,
    prepare_data,
    verify_data,
    show_data,
)
