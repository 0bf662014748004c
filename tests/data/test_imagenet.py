"""ImageNet folders: augmentation, reproducible batches, workers and damaged files."""

import io
import multiprocessing
import re
import tarfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import victims as victim
from conftest import history_of, in_a_victim, untimed
from data.batches import PIXELS, concatenate, equal
from joblib.externals.loky.backend.context import LokyContext
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

import train as train_script
from phaseavg.data import ImageNet
from phaseavg.errors import UserError
from phaseavg.randomness import seed_for

SMALL = {"image_size": 32, "test_resize": 36, "workers": 0}
CLASSES = ("ant", "bee", "cat")
PER_CLASS = 7  # training images
TRAIN = PER_CLASS * len(CLASSES)
RUN = (  # 6 steps an epoch, on small images
    *("dataset=imagenet", "dataset.image_size=16", "dataset.test_resize=18"),
    *("model=resnet34", "model.width=0.05", "schedule.epochs=[2,2,1]", "batch_size=4"),
    *("execution.workers=0", "tracking=none"),
)


def write_tree(folder, train=PER_CLASS, test=3):
    """Write grey and CMYK JPEGs and a PNG of odd sizes, smooth to limit JPEG errors."""
    random = np.random.default_rng(0)
    sizes = [(37, 53), (61, 40), (33, 33), (90, 47), (45, 71), (200, 31), (31, 160)]
    for split, count in (("train", train), ("val", test)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = sizes[(number + label) % len(sizes)]
                coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
                image = coarse.resize((width, height))
                image = image.convert({(0, 0): "L", (1, 0): "CMYK"}.get((label, number), "RGB"))
                suffix = "png" if (label, number) == (2, 1) else "JPEG"
                image.save(folder / split / name / f"{name}_{number}.{suffix}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_tree(root / "imagenet")
    return root


def image_net(root, batch_size=4, seed=0, **options):
    return ImageNet(batch_size, seed, root, **{**SMALL, **options})


def test_processes_read_only_their_shares(tree):
    whole = image_net(tree, 8)
    for rank in range(2):
        share = image_net(tree, 8, rank=rank, world_size=2)
        read, images = [], share._train.read
        share._train.read = lambda index, read=read, images=images: (
            read.append(index) or images(index)
        )
        parts = [[tensor[rank::2] for tensor in batch] for batch in whole.train_batches(1, 6)]
        assert equal(share.train_batches(1, 6), parts)
        assert len(read) == sum(len(labels) for _, labels in parts)
        assert equal(share.test_batches(), [*whole.test_batches()][rank::2])
        assert equal(share.batchnorm_batches(1, 5), [*whole.batchnorm_batches(1, 5)][rank::2])


def test_interface_matches_resident_images(tree):
    data = image_net(tree)
    assert (data.num_classes, data.channels, data.image_size) == (3, 3, 32)
    assert (data.train_size, data.test_size) == (TRAIN, 9)
    assert (data.batch_size, data.steps_per_epoch) == (4, 6)  # the last batch has one image
    images, labels = zip(*data.train_batches(0, 6), strict=True)
    assert [tuple(x.shape) for x in images] == [(n, 3, 32, 32) for n in (4, 4, 4, 4, 4, 1)]
    assert {(x.dtype, y.dtype) for x, y in zip(images, labels, strict=True)} == {
        (torch.float32, torch.int64)
    }
    assert torch.cat(labels).bincount().tolist() == [PER_CLASS] * 3


def test_a_fraction_keeps_the_first_training_files_of_each_class(tree):
    whole, part = image_net(tree), image_net(tree, train_fraction=0.5)
    kept = round(0.5 * PER_CLASS)
    assert (part.train_size, part.test_size) == (3 * kept, whole.test_size)
    indices = np.arange(TRAIN).reshape(3, PER_CLASS)[:, :kept].flatten().tolist()
    assert [part._train.place(n) for n in range(3 * kept)] == list(map(whole._train.place, indices))
    assert part._train.labels.tolist() == [label for label in range(3) for _ in range(kept)]


def test_test_images_match_torchvisions_reference_centre_crops(tree):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    steps = [transforms.Resize(36), transforms.CenterCrop(32), transforms.ToTensor()]
    reference = transforms.Compose([*steps, transforms.Normalize(mean, std)])
    expected = list(ImageFolder(tree / "imagenet" / "val", reference))
    images, labels = concatenate(image_net(tree).test_batches())
    assert labels.tolist() == [label for _, label in expected]
    torch.testing.assert_close(images, torch.stack([image for image, _ in expected]))


@pytest.mark.parametrize("flip", [True, False])
def test_training_images_match_torchvisions_random_crops_with_a_seed_per_image(tree, flip):
    data = image_net(tree, batch_size=TRAIN, seed=3, flip=flip, **PIXELS)
    ((images, labels),) = data.train_batches(2, 3)  # epoch 2
    files = ImageFolder(tree / "imagenet" / "train")
    order = np.random.default_rng(seed_for(3, "train", 2)).permutation(TRAIN)
    chance = 0.5 if flip else 0.0
    steps = [transforms.RandomResizedCrop(32), transforms.RandomHorizontalFlip(chance)]
    for image, label, index in zip(images, labels, order.tolist(), strict=True):
        source, expected_label = files[index]
        torch.manual_seed(seed_for(3, "train/2", index))
        expected = transforms.Compose([*steps, transforms.PILToTensor()])(source)
        assert torch.equal(image, expected.float())
        assert label == expected_label


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_resume_exactly_from_any_step_with_any_number_of_workers(tree, workers):
    batches = list(image_net(tree).train_batches(0, 13))
    for first in (0, 3, 6, 7):
        data = image_net(tree, workers=workers)
        assert equal(data.train_batches(first, 13), batches[first:])


def test_workers_start_in_a_launcher_process(tree, monkeypatch):
    """Check workers where joblib's loky has set its own context as the default."""
    loky = LokyContext()
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", loky)
    expected = image_net(tree).train_batches(0, 2)
    assert equal(image_net(tree, workers=1).train_batches(0, 2), expected)


def test_batchnorm_batches_are_augmented_differently_and_can_be_limited(tree):
    data = image_net(tree)
    batches = list(data.batchnorm_batches(1))
    assert equal(data.batchnorm_batches(1, 2), batches[:2])
    assert len(batches) == 6
    assert not torch.equal(batches[0][0], next(data.train_batches(6, 7))[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_unchanged(tree, workers):
    data = image_net(tree, workers=workers)
    before = torch.get_rng_state()
    for batches in (data.train_batches(0, 2), data.test_batches(), data.batchnorm_batches(0, 1)):
        list(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_colours_change_only_with_color_jitter(tree):
    plain, same, changed = (
        list(image_net(tree, **options).train_batches(0, 2))
        for options in ({}, {"color_jitter": 0.0}, {"color_jitter": 0.4})
    )
    assert equal(plain, same)
    assert not torch.equal(changed[0][0], plain[0][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_ends_the_run_with_its_path(tmp_path, workers):
    write_tree(tmp_path / "imagenet", train=2, test=1)
    path = tmp_path / "imagenet/train/bee/bee_1.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError) as error:
        list(image_net(tmp_path, workers=workers).train_batches(0, 2))
    message = str(error.value)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith("replace the file and rerun the same command to resume")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "val").rename(root / "no"), r"imagenet/val must hold a folder"),
        (lambda root: (root / "val/dog").mkdir(), r"imagenet/val must .*no valid file.* dog"),
        (
            lambda root: (root / "val/cat").rename(root / "val/dog"),
            r"imagenet/train and imagenet/val must have the same classes; class cat is in only",
        ),
    ],
)
def test_invalid_folders_are_rejected(tmp_path, change, message):
    write_tree(tmp_path / "imagenet", train=2, test=1)
    change(tmp_path / "imagenet")
    with pytest.raises(ValueError, match=message) as error:
        image_net(tmp_path)
    assert f"data_dir={tmp_path}" in str(error.value)


def shard_of(**files):
    """Return a shard with files of these contents, by name with `_` for the dot."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as shard:
        for name, data in files.items():
            entry = tarfile.TarInfo(name.replace("_", "."))
            entry.size = len(data)
            shard.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def write_shards(tree, folder, per_shard=4):
    """Write the images of `tree` as shards, in the order of its files."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        samples = ImageFolder(tree / "imagenet" / split).samples
        for first in range(0, len(samples), per_shard):
            files = {}
            for number, (path, label) in enumerate(samples[first : first + per_shard], first):
                stem = f"{label}/{'long' * 40 * (number % 2)}image.{number:06}"
                files[f"{stem}.{path.rpartition('.')[2]}"] = Path(path).read_bytes()
                files[f"{stem}.cls"] = b"%d" % label
            (folder / split / f"{first // per_shard:04}.tar").write_bytes(shard_of(**files))


@pytest.fixture
def sharded(tree, tmp_path):
    write_shards(tree, tmp_path / "imagenet")
    return tmp_path


def all_batches(data):
    return [*data.train_batches(3, 9), *data.batchnorm_batches(1), *data.test_batches()]


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_give_the_same_batches_as_folders(tree, sharded, workers, monkeypatch):
    ImageNet.require(sharded)
    expected = all_batches(image_net(tree, train_fraction=0.7))
    data = image_net(sharded, train_fraction=0.7, workers=workers)
    assert equal(all_batches(data), expected)
    # From now on with the saved places.
    monkeypatch.setattr("phaseavg.data.image_files._samples", lambda path: pytest.fail(str(path)))
    assert equal(all_batches(image_net(sharded, train_fraction=0.7)), expected)


def test_saved_places_are_not_used_for_other_shards(sharded):
    assert image_net(sharded).train_size == TRAIN
    (sharded / "imagenet/train/0005.tar").unlink()  # of 21 images, 4 in each
    assert image_net(sharded).train_size == TRAIN - 1


def test_the_places_need_not_be_saved(sharded, monkeypatch):
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("phaseavg.data.image_files.write_prepared", full)
    assert image_net(sharded).train_size == TRAIN


def test_an_archive_beside_class_folders_is_not_a_shard(tmp_path):
    write_tree(tmp_path / "imagenet", train=2, test=1)
    (tmp_path / "imagenet/train/original.tar").write_bytes(b"anything")
    assert image_net(tmp_path).train_size == 2 * len(CLASSES)


TWO = shard_of(a_jpg=b"1", a_cls=b"0", b_jpg=b"2", b_cls=b"0")
"""A shard of four files, each with a header and a block of 512 bytes."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (shard_of(a_jpg=b""), r"0001\.tar: a must have an image and a \.cls file"),
        (shard_of(a_cls=b"one"), r"0001\.tar: cannot be read \(ValueError: invalid literal"),
        (shard_of(a_jpg=b"", a_png=b""), r"0001\.tar: cannot be read .*two images are named a"),
        (b"no tar" * 200, r"0001\.tar: cannot be read \(ReadError: .*\); replace the file"),
        (TWO[:2048], r"0001\.tar: cannot be read .*it ends at byte 2048 without a mark"),
        (TWO[:2248], r"0001\.tar: cannot be read .*it ends at byte 2048 without a mark"),
        (TWO[:2048] + b"x" * 512 + TWO[2560:], r"0001\.tar: cannot be read .*ends at byte 2048"),
    ],
)
def test_invalid_shards_are_rejected(sharded, content, message):
    (sharded / "imagenet/train/0001.tar").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        image_net(sharded)


@pytest.mark.parametrize("removed", [["0001"], ["0000", "0001", "0002"]])
def test_classes_of_shards_count_from_0(tree, tmp_path, removed):
    write_shards(tree, tmp_path / "imagenet", per_shard=PER_CLASS)
    for name in removed:
        (tmp_path / f"imagenet/train/{name}.tar").write_bytes(shard_of())
    kept = [0, 2] if len(removed) == 1 else []
    message = f"imagenet/train has the classes {kept}; they must be 0, 1, …"
    with pytest.raises(ValueError, match=re.escape(message)):
        image_net(tmp_path)


def test_classes_are_those_of_their_names_in_folders_and_in_shards(tmp_path):
    """Folders sort 10 before 2, numbers do not."""
    images = {}
    for label in range(12):
        image = Image.new("RGB", (20, 20), (20 * label,) * 3)
        (tmp_path / f"imagenet/train/{label}").mkdir(parents=True)
        image.save(tmp_path / f"imagenet/train/{label}/a.png")
        content = io.BytesIO()
        image.save(content, "PNG")
        images |= {f"{label}_png": content.getvalue(), f"{label}_cls": str(label).encode()}
    (tmp_path / "imagenet/val").mkdir()
    (tmp_path / "imagenet/val/0.tar").write_bytes(shard_of(**images))
    data = image_net(tmp_path, mean=[0.0] * 3, std=[1.0] * 3, workers=0)
    of = {}
    for batches in (data.train_batches(0, 3), data.test_batches()):
        for tensors, labels in batches:
            for tensor, label in zip(tensors, labels.tolist(), strict=True):
                assert of.setdefault(label, tensor.mean().item()) == tensor.mean().item()
    assert len(of) == 12


def test_a_damaged_image_in_a_shard_ends_the_run_with_its_place(sharded):
    path, first, size = image_net(sharded)._train.place(5)
    content = bytearray(Path(path).read_bytes())
    content[first : first + size] = bytes(size)
    Path(path).write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}, image at byte {first}, cannot be read"):
        list(image_net(sharded).train_batches(0, 6))


def test_a_crop_larger_than_the_resized_image_is_rejected(tree):
    with pytest.raises(ValueError, match="image_size=40, test_resize=36"):
        image_net(tree, image_size=40)


def test_workers_default_to_the_number_of_cores(tree, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 7)
    assert [image_net(tree, workers=workers).workers for workers in (None, 3)] == [7, 3]


def test_require_checks_for_class_folders(tmp_path):
    (tmp_path / "imagenet/train/ant").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"data_dir={tmp_path}: imagenet/val must hold a folder"):
        ImageNet.require(tmp_path)


@pytest.mark.slow
def test_a_run_does_not_resume_with_other_images(tree, compose_settings, victims, tmp_path):
    write_tree(tmp_path / "imagenet")
    settings = compose_settings(*RUN, f"data_dir={tmp_path}")
    in_a_victim(victims, victim.train_and_be_signalled, settings, tmp_path / "output", 9)
    (tmp_path / "imagenet/train/ant/ant_3.JPEG").unlink()
    with pytest.raises(UserError, match="saved with 21 training images, but the data set has 20"):
        train_script.run(settings)


@pytest.mark.slow
def test_workers_ignore_ctrl_c_and_the_run_saves_and_resumes(
    tree, compose_settings, victims, tmp_path
):
    options = ("execution.workers=1", "checkpoint_seconds=1000")
    settings = compose_settings(*RUN, f"data_dir={tree}", *options)
    undisturbed = settings.model_copy(update={"runs_dir": tmp_path / "undisturbed"})
    train_script.run(undisturbed)
    output = tmp_path / "output"
    assert in_a_victim(victims, victim.train_in_a_group, settings, output, 9) == 0
    assert "interrupted after step" in output.read_text()
    train_script.run(settings)
    assert untimed(history_of(settings)) == untimed(history_of(undisturbed))
