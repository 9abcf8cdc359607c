"""The commands of `python -m flaxseg`, a file each: name, help, flags, and what it does."""

from flaxseg.programs import (
    evaluate,
    export,
    import_model,
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
    import_model,
    prune,
    learn_basis,
    tune_crf,
    models,
    prepare_data,
    verify_data,
    show_data,
)
