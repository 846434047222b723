import dataclasses
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets

from trautoml.errors import TaskError
from trautoml.image_files import SkippedImageWarning
from trautoml.loading import load_task
from trautoml.splits import split_slices
from trautoml.task import SPLITS, Task

FIELDS = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]


def numbered(n: int) -> np.ndarray:
    """Make n different images; the first four pixels hold the number."""
    images = np.zeros((n, 8, 8), np.uint8)
    images[:, 0, :4] = np.arange(n, dtype="<u4").view(np.uint8).reshape(n, 4)
    return images


def numbers(images: np.ndarray) -> list[int]:
    return np.ascontiguousarray(images[:, 0, :4, 0]).view("<u4")[:, 0].tolist()


def make(counts: list[int], seed: int = 0, **options: object) -> Task:
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(0).permutation(labels)
    return Task.from_arrays(numbered(len(labels)), labels, seed=seed, **options)


class_counts = st.lists(st.integers(3, 40), min_size=2, max_size=6)


# --- from_arrays: splits and labels -----------------------------------------------------------


@given(class_counts, st.integers(0, 100))
def test_splits_are_stratified_and_lose_no_image(counts: list[int], seed: int) -> None:
    task = make(counts, seed)
    every = [n for split in SPLITS for n in numbers(getattr(task, f"{split}_images"))]
    assert sorted(every) == list(range(sum(counts)))
    for label, n in enumerate(counts):
        train, val, test = (
            int((getattr(task, f"{split}_labels") == label).sum()) for split in SPLITS
        )
        assert train >= 1
        assert test == max(1, round(0.2 * n))
        assert val == max(1, round(0.2 * (n - test)))


@given(class_counts, st.integers(0, 100))
def test_images_keep_their_labels_and_order(counts: list[int], seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    task = make(counts, seed)
    for split in SPLITS:
        rows = numbers(getattr(task, f"{split}_images"))
        assert rows == sorted(rows)
        assert (labels[rows] == getattr(task, f"{split}_labels")).all()


def test_the_seed_decides_the_splits() -> None:
    assert make([20, 20], seed=1) == make([20, 20], seed=1)
    assert make([20, 20], seed=1) != make([20, 20], seed=2)


@given(
    st.lists(st.one_of(st.integers(-(2**40), 2**40)), min_size=2, max_size=6, unique=True)
    | st.lists(
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=4),
        min_size=2,
        max_size=6,
        unique=True,
    )
)
def test_any_labels_are_renumbered_in_sorted_order(values: list) -> None:
    task = Task.from_arrays(numbered(3 * len(values)), values * 3)
    assert task.class_names == tuple(str(v) for v in sorted(values))
    for split in SPLITS:
        rows = numbers(getattr(task, f"{split}_images"))
        expected = [sorted(values).index((values * 3)[row]) for row in rows]
        assert getattr(task, f"{split}_labels").tolist() == expected
        assert getattr(task, f"{split}_labels").dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([0, 1], ["a", "b"], ("a", "b")),
        ([1, 2], ["a", "b"], ("a", "b")),
        ([1, 3], ["none", "a", "b", "c"], ("a", "c")),
        (["x", "y"], ["ex", "why"], ("ex", "why")),
        ([0, 1], np.array([b"a", b"b"]), ("a", "b")),
        ([False, True], None, ("0", "1")),
        ([7, 9], None, ("7", "9")),
        (["b", "a"], None, ("a", "b")),
    ],
)
def test_class_names(labels: list, names: object, expected: tuple) -> None:
    task = Task.from_arrays(numbered(6), labels * 3, class_names=names)
    assert task.class_names == expected


def test_labels_may_be_a_column_or_objects() -> None:
    column = Task.from_arrays(numbered(6), np.array([[0], [1]] * 3, np.uint8))
    strings = Task.from_arrays(numbered(6), np.array(["a", "b"] * 3, object))
    assert column == strings


def test_given_splits_are_taken_as_they_are() -> None:
    images = numbered(12)
    task = Task.from_arrays(
        images[:4],
        [0, 1, 2, 2],
        val_images=images[4:6],
        val_labels=[1, 2],
        test_images=images[6:],
        test_labels=[0, 0, 1, 1, 0, 0],
    )
    assert [numbers(getattr(task, f"{s}_images")) for s in SPLITS] == [
        [0, 1, 2, 3],
        [4, 5],
        [6, 7, 8, 9, 10, 11],
    ]
    assert task.chance == 0.5


def test_a_missing_validation_split_comes_out_of_training_only() -> None:
    images = numbered(8)
    task = Task.from_arrays(
        images[:4], [0, 1, 0, 1], test_images=images[4:], test_labels=[0, 1, 1, 1]
    )
    assert numbers(task.test_images) == [4, 5, 6, 7]
    assert len(task.val_labels) == task.n_train == 2


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (numbered(0), [], {}, "train split has no images"),
        (numbered(3), [0, 0, 0], {}, "fewer than two classes: all 3 .* class '0'"),
        (numbered(5), [0, 0, 0, 1, 1], {}, "class '1' has 2; every class needs 3 or more"),
        (
            numbered(3),
            ["a", "a", "b"],
            {"test_images": numbered(1), "test_labels": ["a"]},
            "class 'b' has 1; every class needs 2 or more",
        ),
        (numbered(3), [0, 1], {}, "train split: 3 images but 2 labels"),
        (numbered(3), [[0, 1, 2]], {}, r"train labels: expected shape \(N,\), got \(1, 3\)"),
        (numbered(3), [0.5, 1, 2], {}, "expected integers or strings, got dtype float64"),
        (numbered(6), [0, 1] * 3, {"test_images": numbered(1)}, "test split has no labels"),
        (numbered(6), [0, 1] * 3, {"val_labels": [1]}, "val split has no images; give both"),
        (
            numbered(6),
            [0, 1] * 3,
            {"test_images": numbered(1), "test_labels": [5]},
            "test split has classes that training lacks: 5; add",
        ),
        (
            numbered(6),
            [0, 1] * 3,
            {"test_images": numbered(1), "test_labels": ["1"]},
            "test labels are <U1 but training labels are int64",
        ),
        (
            numbered(6),
            [0, 1] * 3,
            {"test_images": np.zeros((1, 9, 9), np.uint8), "test_labels": [0]},
            r"test_images have shape \(9, 9, 1\) but train_images \(8, 8, 1\)",
        ),
        (numbered(6), [0, 1] * 3, {"class_names": ["a"]}, "1 names for 2 classes"),
        (numbered(6), [0, 5] * 3, {"class_names": ["a", "b", "c"]}, "3 names for 2 classes"),
        (np.full((6, 8, 8), 9.0), [0, 1] * 3, {}, r"train images: floats .* got 0 to 9"),
    ],
)
def test_bad_arrays_are_errors(
    images: np.ndarray, labels: list, options: dict, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        Task.from_arrays(images, labels, **options)


def test_long_lists_of_classes_are_cut() -> None:
    with pytest.raises(TaskError, match=r"'9' has 1 and 30 more; every"):
        Task.from_arrays(numbered(40), np.arange(40))


def test_inputs_are_copied_and_stay_writeable() -> None:
    images, labels = numbered(12), np.array([0, 1] * 3)
    task = Task.from_arrays(images[:6], labels, test_images=images[6:], test_labels=labels)
    before = task.fingerprint
    images[:] = 0
    labels[:] = 0
    assert dataclasses.replace(task).fingerprint == before


# --- the dataclass ---------------------------------------------------------------------------


def test_properties_and_repr() -> None:
    task = make([10, 5, 5], name="some")
    assert task.image_shape == (8, 8, 1)
    assert task.n_classes == 3
    assert task.n_train == len(task.train_images) == 12
    assert task.chance == 0.5
    assert repr(task) == "Task('some', 12/4/4 train/val/test images of 8x8x1, 3 classes)"


def test_arrays_are_read_only_also_after_pickling() -> None:
    task = pickle.loads(pickle.dumps(make([3, 3])))  # noqa: S301 - its own bytes
    assert task == make([3, 3])
    for field in FIELDS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(task, field)[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.zeros((4, 8, 8), np.uint8)}, r"expected uint8 \(N, H, W, C\)"),
        ({"val_images": np.zeros((2, 8, 8, 1))}, r"val_images: expected uint8 .* got float64"),
        ({"test_images": np.zeros((2, 8, 8, 2), np.uint8)}, r"C = 1 or 3, got uint8 \(2, 8, 8, 2"),
        ({"train_images": np.zeros((2, 7, 8, 1), np.uint8)}, "7 x 8 pixels; expected 8 to 224"),
        ({"val_images": np.zeros((2, 8, 8, 3), np.uint8)}, r"shape \(8, 8, 3\) but train_images"),
        ({"val_labels": np.zeros(2, np.int32)}, r"expected int64 \(2,\), got int32 \(2,\)"),
        ({"val_labels": np.zeros(3, np.int64)}, r"expected int64 \(2,\), got int64 \(3,\)"),
        ({"test_labels": np.array([0, 2])}, r"test_labels: expected 0\.\.1, got 0\.\.2"),
        ({"test_labels": np.array([0, -1])}, r"expected 0\.\.1, got -1\.\.0"),
        ({"train_labels": np.array([0, 0])}, "class '1' has 0; every class needs 1"),
        (
            {"val_images": np.zeros((0, 8, 8, 1), np.uint8), "val_labels": np.zeros(0, np.int64)},
            "val split has no images",
        ),
    ],
)
def test_the_constructor_checks(change: dict, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        dataclasses.replace(make([3, 3]), **change)


# --- fingerprint -----------------------------------------------------------------------------


def test_fingerprint_is_of_the_content_only() -> None:
    task = make([3, 4])
    same = make([3, 4], name="other", class_names=["a", "b"])
    assert same.fingerprint == task.fingerprint
    assert same == task
    assert hash(same) == hash(task)
    assert task != "a task"
    assert len(bytes.fromhex(task.fingerprint)) == 32


@given(st.sampled_from(FIELDS), st.data())
def test_any_change_of_content_changes_the_fingerprint(field: str, data: st.DataObject) -> None:
    task = make([5, 5, 5])
    array = getattr(task, field).copy()
    place = data.draw(st.integers(0, array.size - 1))
    array.flat[place] = (array.flat[place] + 1) % 3
    changed = dataclasses.replace(task, **{field: array})
    assert changed.fingerprint != task.fingerprint
    assert changed != task


def test_shape_and_split_are_part_of_the_fingerprint() -> None:
    def blank(shape: tuple, n_train: int) -> Task:
        labels = np.array([0, 1] * 4)
        images = np.zeros((8, *shape), np.uint8)
        rows = n_train, n_train + 2
        return Task.from_arrays(
            images[: rows[0]],
            labels[: rows[0]],
            val_images=images[rows[0] : rows[1]],
            val_labels=labels[rows[0] : rows[1]],
            test_images=images[rows[1] :],
            test_labels=labels[rows[1] :],
        )

    tasks = [blank((8, 16), 2), blank((16, 8), 2), blank((8, 16), 4)]
    assert len({task.fingerprint for task in tasks}) == 3


def test_memory_layout_does_not_matter() -> None:
    task = make([4, 4])
    other = dataclasses.replace(task, train_images=np.asfortranarray(task.train_images))
    assert other.fingerprint == task.fingerprint


# --- subset ----------------------------------------------------------------------------------


@given(class_counts, st.floats(0, 1, exclude_min=True), st.integers(0, 100))
def test_subset_keeps_classes_and_proportions(
    counts: list[int], fraction: float, seed: int
) -> None:
    task = make(counts)
    part = task.subset(fraction, seed=seed)
    assert part.class_names == task.class_names
    assert (part.test_images == task.test_images).all()
    for split in ("train", "val"):
        whole = np.bincount(getattr(task, f"{split}_labels"))
        kept = np.bincount(getattr(part, f"{split}_labels"))
        assert (kept >= 1).all()
        assert (np.abs(kept - fraction * whole) <= 1).all()
        inner, outer = (set(numbers(getattr(t, f"{split}_images"))) for t in (part, task))
        assert inner <= outer


def test_subset_is_seeded_and_nested() -> None:
    task = make([40, 30])
    assert task.subset(0.5) == task.subset(0.5, seed=0)
    assert task.subset(0.5) != task.subset(0.5, seed=1)
    small, large = (set(numbers(task.subset(f).train_images)) for f in (0.3, 0.7))
    assert small < large


def test_subset_names_itself_and_one_is_the_same() -> None:
    task = make([10, 10], name="t")
    assert task.subset(0.5).name == "t@0.5"
    assert task.subset(1.0) == task
    assert task.subset(1).name == "t"


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_bad_fractions_are_errors(fraction: float) -> None:
    with pytest.raises(TaskError, match="expected a number above 0 and at most 1"):
        make([3, 3]).subset(fraction)


def test_subset_of_a_validation_split_that_lacks_a_class() -> None:
    task = Task.from_arrays(numbered(8), [0, 1] * 4, val_images=numbered(2), val_labels=[0, 0])
    assert task.subset(0.1).val_labels.tolist() == [0]


# --- save and load ---------------------------------------------------------------------------


@given(class_counts, st.booleans(), st.text(st.characters(codec="utf-8"), max_size=5))
def test_save_and_load_round_trip(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], mmap: bool, name: str
) -> None:
    folder = tmp_path_factory.mktemp("task") / "a b" / "ü"
    task = make(counts, name=name)
    task.save(folder)
    loaded = Task.load(folder, mmap=mmap)
    assert (loaded.name, loaded.class_names) == (task.name, task.class_names)
    assert loaded == task
    assert not loaded.train_images.flags.writeable


def test_saving_again_leaves_mapped_readers_alone(tmp_path: Path) -> None:
    first, second = make([5, 5]), make([3, 3, 3])
    first.save(tmp_path)
    mapped = Task.load(tmp_path)
    second.save(tmp_path)
    assert mapped == first
    assert Task.load(tmp_path) == second
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*(f"{field}.npy" for field in FIELDS), "task.json"]
    )


@pytest.mark.parametrize(
    "spoil", ["missing", "no json", "no keys", "objects", "short", "empty", "type"]
)
def test_incomplete_saved_tasks_are_errors(spoil: str, tmp_path: Path) -> None:
    make([3, 3]).save(tmp_path)
    images = tmp_path / "train_images.npy"
    if spoil == "missing":
        images.unlink()
    elif spoil == "no json":
        (tmp_path / "task.json").write_text("{")
    elif spoil == "no keys":
        (tmp_path / "task.json").write_text("{}")
    elif spoil == "objects":
        np.save(images, np.array([{}], object), allow_pickle=True)
    elif spoil == "short":
        images.write_bytes(images.read_bytes()[:-1])
    elif spoil == "empty":
        images.write_bytes(b"")
    else:
        (tmp_path / "task.json").write_text("[]")
    with pytest.raises(TaskError, match=r"holds no complete saved task .*save it again"):
        Task.load(tmp_path)


# --- from_npz --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        ["train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"],
        ["x_train", "y_train", "x_test", "y_test", "x_val", "y_val"],
        ["images", "labels", "test_images", "test_labels", "val_images", "val_labels"],
        ["x", "y", "x_test", "y_test", "x_val", "y_val"],
    ],
)
@pytest.mark.parametrize("n_keys", [2, 4, 6])
def test_npz_keys(keys: list[str], n_keys: int, tmp_path: Path) -> None:
    values = [numbered(9), [0, 1, 2] * 3, numbered(2), [0, 1], numbered(3), [2, 1, 0]]
    pairs = dict(zip(keys[:n_keys], values, strict=False))
    np.savez(tmp_path / "some data.npz", class_names=["a", "b", "c"], **pairs)
    task = Task.from_npz(tmp_path / "some data.npz")
    arguments = ["images", "labels", "test_images", "test_labels", "val_images", "val_labels"]
    expected = Task.from_arrays(**dict(zip(arguments[:n_keys], values, strict=False)))
    assert task == expected
    assert task.name == "some data"
    assert task.class_names == ("a", "b", "c")


def test_npz_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    readable = r"can't be read as a .npz archive of plain arrays .*numpy\.savez"
    with pytest.raises(TaskError, match=readable):
        Task.from_npz(path)
    np.savez(path, x=numbered(9), y=[0, 1, 2] * 3)
    whole = path.read_bytes()
    damaged = whole[:200] + bytes(80) + whole[280:]
    for content in (b"", b"text", b"PK\x03\x04broken", whole[:-30], damaged):
        path.write_bytes(content)
        with pytest.raises(TaskError, match=readable):
            Task.from_npz(path)
    with path.open("wb") as file:
        np.save(file, numbered(3))
    with pytest.raises(TaskError, match=readable):
        Task.from_npz(path)
    np.savez(path, images=numbered(3), labels=np.array([{}, 1, 2], object))
    with pytest.raises(TaskError, match=readable):
        Task.from_npz(path)
    np.savez(path, a=numbered(3), labels=[1])
    with pytest.raises(TaskError, match=r"has the arrays a, labels; expected train_images and"):
        Task.from_npz(path)
    np.savez(path)
    with pytest.raises(TaskError, match=r"has the arrays \(none\)"):
        Task.from_npz(path)


# --- from_folder -----------------------------------------------------------------------------


def draw(path: Path, level: int = 9, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


def test_folder_of_class_folders(tmp_path: Path) -> None:
    root = tmp_path / "my data ü"
    for i in range(4):
        draw(root / "dog 🐕" / "deep" / f"{i}.png", 1)
        draw(root / "cat" / f"{i}.PNG", 2)
        draw(root / ".hidden" / f"{i}.png", 3)
        draw(root / "__MACOSX" / f"{i}.png", 3)
        draw(root / "cat" / f".{i}.png", 3)
    draw(root / "loose.png", 3)
    (root / "cat" / "notes.txt").write_text("not an image")
    task = Task.from_folder(root)
    assert task.name == "my data ü"
    assert task.class_names == ("cat", "dog 🐕")
    assert task.n_train + len(task.val_labels) + len(task.test_labels) == 8
    assert set(task.train_images[task.train_labels == 0].ravel()) == {2}
    assert set(task.train_images[task.train_labels == 1].ravel()) == {1}
    assert Task.from_folder(root) == task
    assert Task.from_folder(root, image_size=(9, 10), name="x").image_shape == (9, 10, 1)


def test_the_longest_side_of_a_folder_is_64_unless_more_is_allowed(tmp_path: Path) -> None:
    for i in range(8):
        draw(tmp_path / "photos" / "cd"[i % 2] / f"{i}.png", i, (300, 150))
    photos = tmp_path / "photos"
    assert Task.from_folder(photos).image_shape == (32, 64, 1)
    assert Task.from_folder(photos, max_side=100).image_shape == (50, 100, 1)
    assert load_task(str(photos), data_root=tmp_path, max_side=224).image_shape == (112, 224, 1)
    assert Task.from_folder(photos, image_size=40, max_side=20).image_shape == (40, 40, 1)
    with pytest.raises(TaskError, match="from 8 to 224"):
        Task.from_folder(photos, max_side=225)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "valid", "TEST")])
def test_folder_with_splits(names: tuple, tmp_path: Path) -> None:
    for split, (name, n) in enumerate(zip(names, (3, 2, 1), strict=True)):
        for label in "ab":
            for i in range(n):
                draw(tmp_path / name / label / f"{i}.png", split)
    task = Task.from_folder(tmp_path)
    assert [len(getattr(task, f"{s}_labels")) for s in SPLITS] == [6, 4, 2]
    assert [getattr(task, f"{s}_images").max() for s in SPLITS] == [0, 1, 2]


def test_test_folder_may_lack_a_class(tmp_path: Path) -> None:
    for i in range(2):
        draw(tmp_path / "train" / "a" / f"{i}.png")
        draw(tmp_path / "train" / "b" / f"{i}.png")
    draw(tmp_path / "test" / "b" / "0.png")
    (tmp_path / "test" / "a").mkdir()
    task = Task.from_folder(tmp_path)
    assert task.test_labels.tolist() == [1]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for label in ("train", "bus"):
        for i in range(3):
            draw(tmp_path / label / f"{i}.png")
    draw(tmp_path / "train" / "more" / "0.png")
    assert Task.from_folder(tmp_path).class_names == ("bus", "train")


def fill(root: Path, *paths: str) -> None:
    root.mkdir(exist_ok=True)
    for path in paths:
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
        else:
            draw(root / path)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "has no class folders; expected one folder for each class"),
        (["1.png"], r"no class folders \(there are images, but in no class folder\)"),
        (["a/", "b/"], "no images in the class folders of .*; expected files ending in .bmp"),
        (["a/1.png", "a/2.png", "a/3.png"], "fewer than two classes: all 3 .* class 'a'"),
        (
            ["a/1.png", "a/2.png", "a/3.png", "b/1.png", "c/"],
            "class 'b' has 1, 'c' has 0; every class needs 3 or more",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"],
            "test split has classes that training lacks: c",
        ),
        (["train/a/1.png", "extra/1.png"], r"train/ with class folders and beside it extra/"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "two folders for the val split"),
        (["train/a/1.png", "test/1.png"], r"test has no class folders \(there are images"),
        (["train/a/1.png", "test/"], "test has no class folders;"),
        (
            ["train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "test/a/"],
            "the test split has no images",
        ),
    ],
)
def test_bad_folders_are_errors(paths: list[str], message: str, tmp_path: Path) -> None:
    fill(tmp_path / "data", *paths)
    with pytest.raises(TaskError, match=message):
        Task.from_folder(tmp_path / "data")


def test_a_file_or_nothing_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="is not a folder"):
        Task.from_folder(tmp_path / "nothing")


def test_broken_files_are_skipped_and_counted_out(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{label}/{i}.png" for label in "ab" for i in range(3)))
    (tmp_path / "b" / "bad.jpg").write_text("text")
    (tmp_path / "b" / "folder.png").mkdir()
    draw(tmp_path / "b" / "folder.png" / "inner.png")
    with pytest.warns(SkippedImageWarning, match=r"1 of 8 images .*bad\.jpg"):
        task = Task.from_folder(tmp_path)
    assert task.n_train + len(task.val_labels) + len(task.test_labels) == 7
    (tmp_path / "a" / "0.png").write_text("text")
    with (
        pytest.warns(SkippedImageWarning, match="2 of 8"),
        pytest.raises(TaskError, match="class 'a' has 2; every class needs 3"),
    ):
        Task.from_folder(tmp_path)


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "data"
    fill(root, *(f"{label}/{i}.png" for label in "ab" for i in range(3)))
    draw(tmp_path / "outside" / "x.png")
    try:
        (root / "a" / "loop").symlink_to(root / "a", target_is_directory=True)
        (root / "a" / "up").symlink_to(root, target_is_directory=True)
        (root / "b" / "x.png").symlink_to(tmp_path / "outside" / "x.png")
    except OSError:
        pytest.skip("this system lets nobody make links")
    task = Task.from_folder(root)
    # a/up/ reaches b/ once; a/ itself is not read a second time.
    assert task.n_train + len(task.val_labels) + len(task.test_labels) == 3 + 4 + 4


def test_images_of_given_splits_are_not_copied(tmp_path: Path) -> None:
    for split in SPLITS:
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            Image.fromarray(numbered(3)[2]).save(tmp_path / split / label / "1.png")
    task = Task.from_folder(tmp_path)
    every = [getattr(task, f"{split}_images") for split in SPLITS]
    assert len({id(base_of(images)) for images in every}) == 1
    assert all(images.flags.c_contiguous and len(images) == 2 for images in every)


def test_arrays_of_the_caller_are_copied() -> None:
    arrays = [numbered(4) for _ in SPLITS]
    labels = np.arange(4) % 2
    task = Task.from_arrays(
        arrays[0], labels, val_images=arrays[1], val_labels=labels,
        test_images=arrays[2], test_labels=labels,
    )  # fmt: skip
    for split, array in zip(SPLITS, arrays, strict=True):
        assert not np.shares_memory(getattr(task, f"{split}_images"), array)
        assert not np.shares_memory(getattr(task, f"{split}_labels"), labels)


def base_of(array: np.ndarray) -> np.ndarray:
    return array if array.base is None else base_of(array.base)


@given(st.lists(st.sampled_from(SPLITS)).map(lambda found: sorted(found, key=SPLITS.index)))
def test_slices_of_splits_hold_their_rows(found: list[str]) -> None:
    slices = split_slices(found, SPLITS)
    assert list(slices) == list(SPLITS)
    for split, rows in slices.items():
        assert list(range(len(found)))[rows] == [i for i, s in enumerate(found) if s == split]


# --- from_torchvision ------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, name: str = "MNIST", shift: int = 0, prefix: str = "") -> None:
    rng = np.random.default_rng(0)
    for part, n in (("train", 40), ("t10k" if not prefix else "test", 20)):
        raw = root / name / "raw"
        images = rng.integers(0, 256, (n, 28, 28))
        write_idx(raw / f"{prefix}{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}{part}-labels-idx1-ubyte", np.arange(n) % 10 + shift)


def test_mnist_by_any_case(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    task = Task.from_torchvision("mnist", root=tmp_path, download=False)
    assert task.name == "MNIST"
    assert task.image_shape == (28, 28, 1)
    assert [len(getattr(task, f"{s}_labels")) for s in SPLITS] == [30, 10, 20]
    assert task.class_names[3] == "3 - three"
    raw = (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    assert task.test_images.tobytes() == raw
    half = load_task("MNIST@0.5", data_root=tmp_path, image_size=8)
    assert half.name == "MNIST@0.5"
    assert half.image_shape == (8, 8, 1)


def test_emnist_is_its_letters(tmp_path: Path) -> None:
    write_mnist(tmp_path, "EMNIST", shift=1, prefix="emnist-letters-")
    task = Task.from_torchvision("EMNIST", root=tmp_path, download=False)
    assert task.class_names == tuple("abcdefghij")


def test_a_dataset_without_splits_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeData(datasets.FakeData):
        def __init__(self, target_transform: object = None) -> None:
            super().__init__(60, (3, 70, 80), num_classes=2)

    monkeypatch.setattr(datasets, "FakeData", FakeData)
    task = Task.from_torchvision("fakedata", root="unused")
    assert task.image_shape == (56, 64, 3)
    assert task.n_train + len(task.val_labels) + len(task.test_labels) == 60


class Named(datasets.VisionDataset):
    """A dataset with named splits of some sizes, and one broken image."""

    sizes: ClassVar = {"train": 6, "valid": 2, "test": 4}
    classes: ClassVar = [("cat", "tom"), "dog"]

    def __init__(self, root: str, split: str = "train", target_transform: object = None) -> None:
        super().__init__(root)
        if split not in self.sizes:
            raise ValueError(f"unknown split {split}")
        self.split = split

    def __len__(self) -> int:
        return self.sizes[self.split]

    def __getitem__(self, index: int) -> tuple:
        if (self.split, index) == ("train", 5):
            raise OSError("broken\nfile")
        return Image.new("RGB", (8 + index, 8), (index, 0, 0)), index % 2


def test_named_splits_classes_and_broken_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "SVHN", Named)
    with pytest.warns(SkippedImageWarning, match=r"1 of 12 .*Named train\[5\] \(broken file\)"):
        task = Task.from_torchvision("SVHN", root="unused")
    assert [len(getattr(task, f"{s}_labels")) for s in SPLITS] == [5, 2, 4]
    assert task.class_names == ("cat, tom", "dog")


def test_dataset_that_has_no_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(Named):
        sizes: ClassVar = {"extra": 3}

    monkeypatch.setattr(datasets, "SVHN", Odd)
    with pytest.raises(TaskError, match="no split named train or trainval"):
        Task.from_torchvision("SVHN", root="unused")


def test_dataset_that_is_no_classification(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(Named):
        def __getitem__(self, index: int) -> tuple:
            return Image.new("L", (8, 8)), {"boxes": []}

    monkeypatch.setattr(datasets, "SVHN", Odd)
    with pytest.raises(TaskError, match=r"SVHN is no image classification.*\(Image, dict\)"):
        Task.from_torchvision("SVHN", root="unused")


def test_unknown_or_missing_datasets_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no image dataset 'FashonMNIST'; did you mean Fashion"):
        Task.from_torchvision("FashonMNIST", root=tmp_path)
    with pytest.raises(TaskError, match=r"expected a name from torchvision.datasets"):
        Task.from_torchvision("qqqq", root=tmp_path)
    with pytest.raises(TaskError, match=r"KMNIST can't be opened in .*: Dataset not found"):
        Task.from_torchvision("KMNIST", root=tmp_path, download=False)
    for unfit in ("ImageFolder", "CocoDetection", "VisionDataset", "Kinetics"):
        with pytest.raises(TaskError, match="torchvision has no image dataset"):
            Task.from_torchvision(unfit, root=tmp_path)


# --- load_task -------------------------------------------------------------------------------


def test_specs_of_folders_and_archives(tmp_path: Path) -> None:
    folder = tmp_path / "a@0.5"
    fill(folder, *(f"{label}/{i}.png" for label in "ab" for i in range(10)))
    whole = load_task(str(folder), data_root=tmp_path, image_size=9)
    assert whole.name == "a@0.5"
    assert whole.image_shape == (9, 9, 1)
    assert load_task(f"{folder}@0.5", data_root=tmp_path).name == "a@0.5@0.5"
    np.savez(tmp_path / "b.npz", x=numbered(20), y=[0, 1] * 10)
    half = load_task(f"{tmp_path / 'b.npz'}@0.5", data_root=tmp_path, seed=3)
    assert half == Task.from_npz(tmp_path / "b.npz", seed=3).subset(0.5, seed=3)
    assert half.name == "b@0.5"


def test_specs_of_demo_tasks(tmp_path: Path) -> None:
    from trautoml.demo_tasks import digits

    assert load_task("digits", data_root=tmp_path) == digits()
    assert load_task("Digits@0.5", data_root=tmp_path, seed=2) == digits(2).subset(0.5, seed=2)
    assert load_task("digits-rotated", data_root=tmp_path).name == "digits-rotated"
    assert load_task("digits-background", data_root=tmp_path).name == "digits-background"


def test_an_existing_path_comes_before_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "digits", *(f"{label}/{i}.png" for label in "ab" for i in range(3)))
    monkeypatch.chdir(tmp_path)
    assert load_task("digits", data_root=tmp_path).n_classes == 2
    monkeypatch.chdir(tmp_path / "digits")
    assert load_task(".", data_root=tmp_path).name == "digits"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no task named: expected a folder, a .npz file or a dataset's name"),
        ("@0.5", "no task named"),
        ("digits@", "expected a number after '@', above 0 and at most 1, got ''"),
        ("digits@half", "got 'half'; there is no file or folder of that whole name"),
        ("digits@1.5", "fraction must be above 0 and at most 1, got 1.5"),
        ("digits@nan", "fraction must be above 0"),
        ("digitz", "no task 'digitz': there is no file or folder .*digitz, and the demo tasks are"),
        ("MNITS", "did you mean .*MNIST"),
        ("no/where", "no task 'no/where': there is no file or folder"),
        ("where.npz", "no task 'where.npz': there is no file or folder .*background$"),
    ],
)
def test_bad_specs_say_what_was_tried(spec: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        load_task(spec, data_root=tmp_path)
    assert "\n" not in str(caught.value)
