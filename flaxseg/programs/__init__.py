"""Implements the commands of `flaxseg`, one file each: name, help, flags and work.

A command has `add_arguments` and `run`, or, where its flags are not argparse's, `main`.
"""

from flaxseg.programs import (
    evaluate,
    export,
    import_weights,
    learn_basis,
    models,
    predict,
    prepare_data,
    print_config,
    prune,
    recipe_list,
    report,
    results,
    show_data,
    train,
    tune_crf,
    verify_data,
)

COMMANDS = (
    train,
    recipe_list,
    print_config,
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
