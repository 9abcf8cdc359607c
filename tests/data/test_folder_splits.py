"""What the splits of one's own folder are for: to train, to evaluate, or not labelled at all."""

import doctest
import re
import shlex
import shutil

import numpy as np
import pytest
from own_folder import TOML, encoded, image_of, label_of, write_folder

import flaxseg.data
from flaxseg import cli
from flaxseg.data.raw import split_names
from flaxseg.errors import ConfigError, DataError


def info_of(folder):
    return flaxseg.data.dataset_info(f"folder:{folder}")


def verify(folder):
    return flaxseg.data.verify_data(f"folder:{folder}", progress=False)


def prepare(folder, data_dir, **options):
    return flaxseg.data.prepare("folder", data_dir, folder, progress=False, **options)


def without_car(label):
    return encoded(np.minimum(label, 1))


@pytest.mark.parametrize(
    ("names", "train", "evaluated"),
    [
        (("training", "validation"), "training", "validation"),
        (("Train", "VAL", "Test"), "Train", "VAL"),
        (("trainset", "testing"), "trainset", "testing"),
        (("train2017", "val2017"), "train2017", "val2017"),
        (("a_dev", "dev", "train", "train_extra"), "train", "dev"),
        (("berlin", "paris"), "", ""),
        (("train_1", "train_2", "val_1", "val_2"), "", ""),
        (("train", "extra"), "train", ""),
        (("test",), "", "test"),
        (("paris",), "", "paris"),
    ],
)
def test_what_a_split_is_for_is_known_by_its_name_not_by_its_place(
    tmp_path, names, train, evaluated
):
    folder = write_folder(tmp_path / "toy", dict.fromkeys(names, 1))
    info = info_of(folder)
    assert sorted(info.splits) == sorted(names)
    assert (info.train_split, info.eval_split) == (train, evaluated)
    assert verify(folder).training_split == train
    assert doctest.testmod(split_names).failed == 0


def test_published_sets_train_on_their_first_split():
    for name in flaxseg.data.list_datasets():
        info = flaxseg.data.dataset_info(name)
        assert info.train_split == info.splits[0] == "train"


def test_class_weights_come_from_the_training_split_or_from_none(tmp_path):
    folder = write_folder(tmp_path / "toy", {"training": 3, "validation": 2})
    report = verify(folder)
    wanted = report.statistics["training"].median_frequency_weights()
    np.testing.assert_array_equal(report.class_weights(), wanted)
    assert "Median-frequency weights, from training:" in report.text()
    folder = write_folder(tmp_path / "cities", {"berlin": 3, "paris": 2})
    report = verify(folder)
    assert report.class_weights() is None
    assert report.to_dict()["median_frequency_weights"] is None
    assert "No median-frequency weights: no split is meant for training" in report.text()
    assert "--config.loss.class_weights" not in report.text()


def test_usual_names_find_the_split_that_is_meant(tmp_path):
    folder = write_folder(tmp_path / "toy", {"training": 3, "validation": 2})
    data_dir = tmp_path / "data"
    prepare(folder, data_dir)
    for split, own in (("train", "training"), ("val[:1]", "validation[:1]"), ("dev", "validation")):
        records = flaxseg.data.open_split(f"folder:{folder}", split, data_dir)
        assert records.split == own
    both = flaxseg.data.open_split(f"folder:{folder}", "train+val", data_dir)
    assert [record["id"] for record in both][2:4] == ["training/002", "validation/003"]
    with pytest.raises(ConfigError, match=r"no split 'test'; its splits: training, validation"):
        flaxseg.data.open_split(f"folder:{folder}", "test", data_dir)
    assert flaxseg.data.check_split(flaxseg.data.dataset_info("camvid"), "validation") == "val"
    with pytest.raises(ConfigError, match="has no split 'trainval'"):
        flaxseg.data.check_split(flaxseg.data.dataset_info("camvid"), "trainval")


def test_a_program_asks_for_the_split_where_no_name_says_it(tmp_path, capsys):
    folder = write_folder(tmp_path / "toy", {"berlin": 2, "paris": 2})
    command = ("show-data", "folder", "--manual_dir", folder, "--data_dir", tmp_path / "data",
               "--crop_size", 8, 8, "--num_examples", 1, "--out", tmp_path / "x.png")  # fmt: skip
    assert cli.main([str(word) for word in command]) == 2
    assert "berlin, paris; choose with --split" in capsys.readouterr().err
    assert cli.main([*map(str, command), "--split=paris"]) == 0
    assert "of toy paris" in capsys.readouterr().out


def test_a_test_set_alone_may_lack_a_class(tmp_path):
    folder = write_folder(tmp_path / "toy", {"test": 2}, encode_mask=without_car)
    report = verify(folder)
    assert not report.errors
    assert [str(warning) for warning in report.warnings] == ["test: no pixel of class 'car'"]
    prepare(folder, tmp_path / "data")
    records = flaxseg.data.open_split(f"folder:{folder}", "test", tmp_path / "data")
    np.testing.assert_array_equal(records[1]["label"], np.minimum(label_of(1), 1))


def test_what_is_trained_on_must_have_every_class(tmp_path, capsys):
    folder, data_dir = write_folder(tmp_path / "toy", {"fold1": 1, "fold2": 1}), tmp_path / "data"
    (folder / "masks" / "fold2" / "001.png").write_bytes(without_car(label_of(1)))
    assert not verify(folder).errors
    prepare(folder, data_dir)
    name = f"folder:{folder}"
    for split in ("fold1", "fold1[:1]", "fold2+fold1"):
        flaxseg.data.check_trainable(name, split, data_dir)
    with pytest.raises(DataError, match=r"no pixel of class 'car' in fold2\[:1\]"):
        flaxseg.data.check_trainable(name, "fold2[:1]", data_dir)
    flaxseg.data.check_trainable(name, "fold2", data_dir, "absent_class")
    # By its name, a split is meant for training: verify-data says it before.
    (folder / "images" / "fold2").rename(folder / "images" / "training")
    (folder / "masks" / "fold2").rename(folder / "masks" / "training")
    (error,) = verify(folder).errors
    assert "training: no pixel of class 'car'; a class that is not in the training" in str(error)
    flaxseg.data.prepare("folder", data_dir, folder)
    assert "toy: no pixel of 'car' in training\n" in capsys.readouterr().err


def test_a_test_set_without_masks_is_left_out_with_a_warning(tmp_path, capsys):
    folder = write_folder(tmp_path / "toy", {"train": 3, "val": 2, "test": 2, "later": 1})
    data_dir = tmp_path / "data"
    aside = tmp_path / "aside"
    (folder / "masks" / "test").rename(aside)
    shutil.rmtree(folder / "masks" / "later")
    report = verify(folder)
    assert not report.errors
    assert report.num_pairs == {"train": 3, "val": 2}
    found = "\n".join(map(str, report.warnings))
    for split in ("test", "later"):
        assert f"split {split!r} is left out, because masks/{split} is missing" in found
    assert info_of(folder).eval_split == "val"
    flaxseg.data.prepare("folder", data_dir, folder)
    assert "toy: without test, for which masks/test would be needed" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"because masks/test was missing\. Add it") as caught:
        flaxseg.data.open_split(f"folder:{folder}", "test", data_dir)
    aside.rename(folder / "masks" / "test")
    run_advice(caught.value, capsys)
    assert len(flaxseg.data.open_split(f"folder:{folder}", "test", data_dir)) == 2


def test_a_list_without_masks_is_left_out_too(tmp_path):
    folder = write_folder(tmp_path / "toy", {"": 6})
    toml = TOML + '[splits]\ntrain = "train.txt"\nval = "val.txt"\ntest = "test.txt"\n'
    (folder / "dataset.toml").write_text(toml)
    for split, numbers in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4, 5))):
        (folder / f"{split}.txt").write_text("".join(f"{number:03d}\n" for number in numbers))
    for number in (4, 5):
        (folder / "masks" / f"{number:03d}.png").unlink()
    report = verify(folder)
    assert not report.errors
    assert "because any mask of test.txt is missing" in str(report.warnings[0])
    (folder / "masks" / "004.png").write_bytes(encoded(label_of(4)))
    assert "005.png: the label of 'test/005' is missing" in str(verify(folder).errors[0])


@pytest.mark.parametrize(
    ("splits", "without"),
    [
        (("train", "val", "test"), ("train",)),
        (("train", "val", "test"), ("train", "val")),
        (("extra", "test"), ("extra", "test")),  # if none has masks, something else is wrong
    ],
)
def test_splits_that_need_masks_are_not_left_out(tmp_path, splits, without):
    folder = write_folder(tmp_path / "toy", dict.fromkeys(splits, 3))
    for split in without:
        for mask in (folder / "masks" / split).iterdir():
            mask.unlink()
    report = verify(folder)
    assert len(report.errors) == len(without), "one for each split, not one for each file"
    found = "\n".join(map(str, report.errors))
    for split in without:
        assert f"{split}: none of 3 images has a mask; there is none in {folder}/masks/" in found
    with pytest.raises(DataError) as caught:
        prepare(folder, tmp_path / "data")
    assert "--allow_problems" not in str(caught.value), "it would leave a split empty"


def test_a_split_that_is_to_be_evaluated_needs_masks(tmp_path):
    folder = write_folder(
        tmp_path / "toy", {"train": 2, "test": 2}, toml='eval_split="test"' + TOML
    )
    (folder / "dataset.toml").write_text('eval_split = "testing"\n' + TOML)
    shutil.rmtree(folder / "masks" / "test")
    assert info_of(folder).eval_split == "test"
    assert "test: none of 2 images has a mask" in str(verify(folder).errors[0])


def test_masks_beside_which_there_are_no_images_are_named(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 2, "val": 2})
    (folder / "masks" / "val").rename(folder / "masks" / "valid")
    found = "\n".join(map(str, verify(folder).errors))
    assert (
        f"{folder}/masks/valid holds masks, and there is no folder {folder}/images/valid" in found
    )
    assert "val: none of 2 images has a mask" in found
    (folder / "images" / "val").rename(folder / "images" / "valid")
    (folder / "images" / "notes").mkdir()  # without an image it is no split
    assert not verify(folder).errors


def test_folders_may_lie_in_each_other(tmp_path):
    folder = write_folder(tmp_path / "toy", {"": 4})
    (folder / "masks").rename(folder / "images" / "masks")
    keys = 'masks = "images/masks"\nval_share = 0.25\n'
    (folder / "dataset.toml").write_text(keys + TOML)
    assert (verify(folder).num_pairs, verify(folder).errors) == ({"train": 3, "val": 1}, ())
    folder = write_folder(tmp_path / "split", toml='images = "."\n' + TOML)
    for split in ("train", "val"):
        (folder / "images" / split).rename(folder / split)
    (folder / "images").rmdir()
    assert (verify(folder).num_pairs, verify(folder).errors) == ({"train": 4, "val": 2}, ())


def run_advice(error, capsys):
    """Runs the command that a message ends with."""
    (command,) = re.findall(r"python -m flaxseg (prepare-data .*?)(?: \(train|$)", str(error))
    assert cli.main(shlex.split(command)) == 0, capsys.readouterr().err


def test_the_way_on_that_a_message_prints_works(tmp_path, capsys):
    folder, data_dir = write_folder(tmp_path / "my images"), tmp_path / "my data"
    (folder / "images" / "train" / "001.jpg").write_bytes(b"")
    (folder / "masks" / "val" / "extra.png").write_bytes(encoded(label_of(9)))
    with pytest.raises(DataError) as caught:
        prepare(folder, data_dir)
    run_advice(caught.value, capsys)
    assert flaxseg.data.is_prepared(f"folder:{folder}", data_dir)
    shutil.rmtree(data_dir)
    with pytest.raises(DataError) as caught:  # what was allowed before is allowed on
        prepare(folder, data_dir, allow_problems="orphan")
    assert "--allow_problems=orphan,undecodable" in str(caught.value)
    run_advice(caught.value, capsys)
    (folder / "dataset.toml").write_text(TOML.replace("car", "bus"))
    with pytest.raises(DataError, match="have changed since") as caught:
        flaxseg.data.open_split(f"folder:{folder}", "val", data_dir)
    (folder / "images" / "train" / "001.jpg").write_bytes(encoded(image_of(1), "JPEG"))
    (folder / "masks" / "val" / "extra.png").unlink()
    run_advice(caught.value, capsys)
    with pytest.raises(DataError, match="is not prepared") as caught:
        flaxseg.data.open_split(f"folder:{folder}", "val", tmp_path / "other")
    run_advice(caught.value, capsys)


def test_problems_whose_allowance_leaves_a_split_empty_are_not_recommended(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 2, "val": 1})
    (folder / "images" / "val" / "002.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty") as caught:
        prepare(folder, tmp_path / "data")
    assert "--allow_problems" not in str(caught.value)
