import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trautoml.errors import TaskError
from trautoml.image_files import SkippedImageWarning, check_image_size, open_file, read_images
from trautoml.images import as_images

RED = (255, 0, 0)


def read_one(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    image.save(path, **options)
    images, kept = read_images([path], open_file, 8)
    assert kept == [0]
    return images[0]


def filled(mode: str, colour: object, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)


def palette(transparent: bool = False) -> Image.Image:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 0, 0, 255])
    if transparent:
        image.info["transparency"] = 0
    return image


MODES = {
    "L": (filled("L", 77), "a.png", [77]),
    "1": (filled("1", 1), "a.png", [255]),
    "LA opaque": (filled("LA", (50, 255)), "a.png", [50]),
    "LA clear": (filled("LA", (50, 0)), "a.png", [255]),
    "LA half": (filled("LA", (0, 51)), "a.png", [204]),
    "RGB": (filled("RGB", (1, 2, 3)), "a.png", [1, 2, 3]),
    "RGB grey": (filled("RGB", (9, 9, 9)), "a.png", [9]),
    "RGBA opaque": (filled("RGBA", (1, 2, 3, 255)), "a.png", [1, 2, 3]),
    "RGBA clear": (filled("RGBA", (1, 2, 3, 0)), "a.png", [255]),
    "RGBA half": (filled("RGBA", (255, 0, 0, 51)), "a.png", [255, 204, 204]),
    "P": (palette(), "a.png", [10, 20, 30]),
    "P clear": (palette(transparent=True), "a.png", [255]),
    "P gif": (palette(), "a.gif", [10, 20, 30]),
    "I;16": (Image.fromarray(np.full((8, 8), 100 * 257 + 100, np.uint16)), "a.png", [100]),
    "I;16 tiff": (Image.fromarray(np.full((8, 8), 65535, np.uint16)), "a.tif", [255]),
    "I": (Image.fromarray(np.full((8, 8), 257, np.int32)), "a.tif", [1]),
    "F": (Image.fromarray(np.full((8, 8), 0.2, np.float32)), "a.tif", [51]),
    "CMYK": (filled("CMYK", (0, 255, 255, 0)), "a.tif", [255, 0, 0]),
    "L transparent": (filled("L", 7), "t.png", [255]),
}


@pytest.mark.parametrize("case", MODES)
def test_every_mode_is_brought_to_grey_or_colour(case: str, tmp_path: Path) -> None:
    image, name, expected = MODES[case]
    options = {"transparency": 7} if name == "t.png" else {}
    pixels = read_one(image, tmp_path / name, **options)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (8, 8, len(expected))
    assert (pixels == expected).all()


@pytest.mark.parametrize("ending", ["bmp", "jpg", "png", "ppm", "tiff", "webp", "gif", "jp2"])
def test_usual_formats_are_read(ending: str, tmp_path: Path) -> None:
    pixels = read_one(filled("RGB", RED), tmp_path / f"a.{ending}")
    assert np.abs(pixels.astype(int) - RED).max() < 10


def test_one_coloured_image_makes_all_colour(tmp_path: Path) -> None:
    filled("L", 9).save(tmp_path / "grey.png")
    filled("RGB", RED).save(tmp_path / "red.png")
    images, _ = read_images([tmp_path / "grey.png", tmp_path / "red.png"], open_file)
    assert images.shape == (2, 8, 8, 3)
    assert (images[0] == 9).all()
    assert (images[1] == RED).all()


def test_unreadable_colour_does_not_make_colour(tmp_path: Path) -> None:
    filled("L", 9).save(tmp_path / "grey.png")
    truncate(filled("RGB", RED, (64, 64)), tmp_path / "red.jpg")
    with pytest.warns(SkippedImageWarning):
        images, kept = read_images([tmp_path / "red.jpg", tmp_path / "grey.png"], open_file)
    assert kept == [1]
    assert images.shape[3] == 1


@pytest.mark.parametrize(
    ("sizes", "wanted", "expected"),
    [
        ([(20, 10)], None, (10, 20)),
        ([(20, 10), (30, 20), (100, 21)], None, (20, 30)),
        ([(640, 320)], None, (32, 64)),
        ([(1000, 10)], None, (8, 64)),
        ([(1, 1)], None, (8, 8)),
        ([(3, 200)], None, (64, 8)),
        ([(640, 320)], 100, (100, 100)),
        ([(640, 320)], (20, 224), (20, 224)),
        ([(65, 63)], None, (62, 64)),
    ],
)
def test_size_rule(sizes: list, wanted: object, expected: tuple, tmp_path: Path) -> None:
    paths = []
    for i, size in enumerate(sizes):
        paths.append(tmp_path / f"{i}.png")
        filled("L", 5, size).save(paths[-1])
    images, _ = read_images(paths, open_file, wanted)
    assert images.shape == (len(sizes), *expected, 1)
    assert (images == 5).all()


def test_images_are_scaled_to_cover_and_cut_at_the_centre(tmp_path: Path) -> None:
    strip = np.zeros((20, 60), np.uint8)
    strip[:, 20:40] = 200
    pixels = read_one(Image.fromarray(strip), tmp_path / "a.png")
    assert (pixels[:, 1:-1] == 200).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn clockwise to view
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    images, _ = read_images([tmp_path / "a.png"], open_file)
    assert images.shape == (1, 40, 20, 1)
    assert images[0, :15].min() == 255
    assert images[0, 25:].max() == 0


def test_big_jpeg_is_like_its_full_decoding(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    Image.fromarray(np.tile(ramp, (1200, 1))).save(tmp_path / "a.jpg", quality=95)
    images, _ = read_images([tmp_path / "a.jpg"], open_file, (12, 16))
    expected = np.linspace(0, 255, 33)[1::2]
    assert np.abs(images[0, :, :, 0].astype(float) - expected).max() < 4


def truncate(image: Image.Image, path: Path) -> None:
    image.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_broken_files_are_skipped_and_named_once(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    truncate(Image.fromarray(noise), tmp_path / "short.jpg")
    truncate(Image.fromarray(noise), tmp_path / "short.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(np.full((8, 8), 2.0, np.float32)).save(tmp_path / "range.tif")
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(tmp_path / "deep.tif")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    bad = sorted(tmp_path.iterdir())
    good = tmp_path / "ünï côdé.png"
    filled("L", 3).save(good)
    with pytest.warns(SkippedImageWarning) as record:
        images, kept = read_images([*bad, good], open_file)
    assert kept == [len(bad)]
    assert images.shape == (1, 8, 8, 1)
    assert len(record) == 1
    message = str(record[0].message)
    assert message.startswith("8 of 9 images could not be read and were skipped: ")
    assert all(str(path) in message for path in bad)
    assert "\n" not in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with (
        pytest.warns(SkippedImageWarning, match="not a regular file"),
        pytest.raises(TaskError, match="none of the 1 found could be read"),
    ):
        read_images([tmp_path / "a.png"], open_file)


@pytest.mark.parametrize("limit", [300, 100])
def test_decompression_bomb_is_skipped(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled("L", 3, (20, 20)).save(tmp_path / "bomb.png")
    filled("L", 3).save(tmp_path / "fine.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.warns(SkippedImageWarning, match=r"bomb\.png .*decompression bomb"):
        _, kept = read_images([tmp_path / "bomb.png", tmp_path / "fine.png"], open_file)
    assert kept == [1]


def test_warning_names_ten_and_counts_the_rest(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:02}.png" for i in range(13)]
    for path in paths[:12]:
        path.touch()
    filled("L", 3).save(paths[12])
    with pytest.warns(SkippedImageWarning) as record:
        read_images(paths, open_file)
    message = str(record[0].message)
    assert "09.png" in message
    assert "10.png" not in message
    assert message.endswith("and 2 more")


def test_bad_exif_and_pillow_warnings_do_not_matter(tmp_path: Path) -> None:
    filled("L", 3).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    image = palette()
    image.info["transparency"] = bytes([255, 128])
    image.save(tmp_path / "b.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, kept = read_images([tmp_path / "a.jpg", tmp_path / "b.png"], open_file)
    assert kept == [0, 1]


@pytest.mark.parametrize("size", [7, 225, 0, -8, 16.0, (16,), (16, 300), (16, "8"), (1, 2, 3)])
def test_bad_image_sizes_are_errors(size: object) -> None:
    with pytest.raises(TaskError, match=r"image_size .*from 8 to 224"):
        check_image_size(size)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "pair"), [(None, None), (8, (8, 8)), ((9, 224), (9, 224))])
def test_good_image_sizes(size: object, pair: object) -> None:
    assert check_image_size(size) == pair  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 8, 9), (2, 8, 9, 1)),
        ((2, 8, 9, 1), (2, 8, 9, 1)),
        ((2, 8, 9, 3), (2, 8, 9, 3)),
        ((2, 8, 9, 4), (2, 8, 9, 3)),
        ((2, 1, 8, 9), (2, 8, 9, 1)),
        ((2, 3, 8, 9), (2, 8, 9, 3)),
        ((2, 4, 8, 9), (2, 8, 9, 3)),
        ((1, 224, 224), (1, 224, 224, 1)),
    ],
)
def test_axes_of_arrays(shape: tuple, expected: tuple) -> None:
    assert as_images(np.zeros(shape, np.uint8), "train").shape == expected


def test_channels_first_keeps_the_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)
    assert (as_images(images.transpose(0, 3, 1, 2), "train") == images).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 32, 3), np.uint8), "train images are 3 x 32 pixels; expected 8 to 224"),
        (np.zeros((2, 7, 8), np.uint8), "7 x 8 pixels"),
        (np.zeros((2, 8, 225), np.uint8), "8 x 225 pixels"),
        (np.zeros((2, 8, 8, 2), np.uint8), r"shape \(2, 8, 8, 2\); expected \(N, H, W\)"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
        (np.zeros((0, 8, 8), np.uint8), "train split has no images"),
        (np.zeros((2, 8, 8), np.int64), r"dtype int64; expected uint8.*astype"),
        (np.zeros((2, 8, 8), object), "dtype object"),
        (np.full((2, 8, 8), np.nan), "finite and in .* got NaN or infinity"),
        (np.full((2, 8, 8), np.inf), "got NaN or infinity"),
        (np.full((2, 8, 8), 1.5), r"got 0 to 1\.5; rescale"),
        (np.full((2, 8, 8), -0.5), r"got -0\.5 to 1"),
    ],
)
def test_bad_arrays_are_errors(array: np.ndarray, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        as_images(array, "train")


def test_values_of_arrays() -> None:
    def value(x: object, dtype: object) -> int:
        return int(as_images(np.full((1, 8, 8), x, dtype), "train")[0, 0, 0, 0])

    assert value(7, np.uint8) == 7
    assert value(True, bool) == 255
    assert value(False, bool) == 0
    assert value(65535, np.uint16) == 255
    assert value(257, np.uint16) == 1
    assert value(129, np.uint16) == 1
    assert value(128, np.uint16) == 0
    assert value(0.2, np.float16) == 51
    assert value(0.5, np.float32) == 128
    assert value(1, np.float64) == 255


@given(st.integers(0, 255), st.integers(0, 255))
def test_opacity_is_over_white(level: int, opacity: int) -> None:
    image = np.zeros((1, 8, 8, 4), np.uint8)
    image[..., :3], image[..., 3] = level, opacity
    exact = level * opacity / 255 + 255 - opacity
    assert abs(int(as_images(image, "train")[0, 0, 0, 0]) - exact) <= 0.5


@given(st.integers(0, 255))
def test_all_kinds_of_one_image_agree(level: int) -> None:
    plain = np.full((1, 8, 8), level, np.uint8)
    assert (as_images(plain.astype(np.uint16) * 257, "x") == plain[..., None]).all()
    assert (as_images(plain / 255, "x") == plain[..., None]).all()
    assert (as_images((plain / 255).astype(np.float32), "x") == plain[..., None]).all()
