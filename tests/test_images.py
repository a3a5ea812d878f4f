import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from osprey_tp.images import load_image, picture_size

from .golden_recipe import image

PIXELS = image(12, 20)
EXIF_ORIENTATION = 274


def assert_picture(loaded, expected, tolerance=0):
    assert loaded.mode == "RGB"
    difference = np.abs(np.asarray(loaded).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= tolerance


class TestForms:
    @pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
    def test_files_without_loss_keep_every_pixel(self, tmp_path, suffix):
        path = tmp_path / f"picture.{suffix}"
        Image.fromarray(PIXELS).save(path)
        assert_picture(load_image(path), PIXELS)
        assert_picture(load_image(str(path)), PIXELS)

    @pytest.mark.parametrize("suffix", ["jpg", "webp"])
    def test_files_with_loss_are_read(self, tmp_path, suffix):
        path = tmp_path / f"picture.{suffix}"
        Image.new("RGB", (20, 12), (200, 100, 50)).save(path)
        assert_picture(load_image(path), np.full((12, 20, 3), (200, 100, 50)), tolerance=3)

    def test_arrays_and_tensors_of_either_scale_agree(self):
        floats = PIXELS / 255
        channels_first = torch.from_numpy(PIXELS).permute(2, 0, 1)
        forms = [
            PIXELS,
            floats,
            floats.astype(np.float32),
            channels_first,
            channels_first / 255,
            Image.fromarray(PIXELS),
        ]
        forms.append((channels_first / 255).to(torch.float64).requires_grad_())
        for form in forms:
            assert_picture(load_image(form), PIXELS)

    def test_half_precision_tensors_are_read(self):
        tensor = (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).to(torch.bfloat16)
        assert_picture(load_image(tensor), PIXELS, tolerance=1)

    @pytest.mark.parametrize("shape", [(12, 20), (12, 20, 1)])
    def test_grey_becomes_three_equal_channels(self, shape):
        grey = PIXELS[..., 0]
        expected = np.repeat(grey[..., None], 3, axis=2)
        assert_picture(load_image(grey.reshape(shape)), expected)
        assert_picture(load_image(torch.from_numpy(grey.copy())[None]), expected)
        assert_picture(load_image(Image.fromarray(grey)), expected)

    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path):
        grey = PIXELS[..., 0]
        path = tmp_path / "deep.png"
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
        assert_picture(load_image(path), np.repeat(grey[..., None], 3, axis=2))

    def test_floating_point_files_are_read(self, tmp_path):
        path = tmp_path / "float.tiff"
        Image.fromarray((PIXELS[..., 0] / 255).astype(np.float32)).save(path)
        assert_picture(load_image(path), np.repeat(PIXELS[..., :1], 3, axis=2))

    def test_transparency_is_laid_over_white(self):
        rgba = np.zeros((1, 3, 4), dtype=np.uint8)
        rgba[0, :, 3] = [255, 128, 0]
        expected = np.repeat(np.array([[0, 127, 255]])[..., None], 3, axis=2)
        assert_picture(load_image(rgba), expected)
        assert_picture(load_image(Image.fromarray(rgba)), expected)

    def test_transparent_palette_entries_are_laid_over_white(self, tmp_path):
        palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
        palette.putpalette([10, 20, 30, 40, 50, 60])
        path = tmp_path / "palette.png"
        palette.save(path, transparency=0)
        assert_picture(load_image(path), [[[255, 255, 255], [40, 50, 60]]])
        assert_picture(load_image(palette), [[[10, 20, 30], [40, 50, 60]]])

    def test_cmyk_is_converted(self, tmp_path):
        path = tmp_path / "print.jpg"
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=95)
        assert_picture(load_image(path), np.full((8, 8, 3), (255, 0, 0)), tolerance=3)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_pictures_are_turned_upright(self, tmp_path, orientation):
        # how each orientation stores an upright picture, from the EXIF standard
        store = {
            1: lambda a: a,
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, 1),
            7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
            8: lambda a: np.rot90(a, -1),
        }[orientation]
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        path = tmp_path / "turned.png"
        Image.fromarray(np.ascontiguousarray(store(PIXELS))).save(path, exif=exif)
        assert_picture(load_image(path), PIXELS)

    def test_the_source_is_left_as_it_was(self):
        picture = Image.fromarray(PIXELS)
        load_image(picture).putpixel((0, 0), (1, 2, 3))
        assert_picture(picture, PIXELS)


def _with_nan():
    floats = (PIXELS / 255).astype(np.float32)
    floats[3, 4, 1] = np.nan
    return floats


BAD_PICTURES = {
    "NaN array": (_with_nan(), r"array of shape \(12, 20, 3\) holds NaN"),
    "NaN tensor": (torch.from_numpy(_with_nan()).permute(2, 0, 1), r"tensor of shape \(3, 12, 20\) holds NaN"),
    "floats up to 255": (PIXELS.astype(float), "floating-point numbers from 0 to 255"),
    "negative floats": (PIXELS / 255 - 1, "must lie between 0 and 1"),
    "channels first array": (PIXELS.transpose(2, 0, 1), r"array of shape \(3, 12, 20\) is no picture"),
    "channels last tensor": (torch.from_numpy(PIXELS), r"tensor of shape \(12, 20, 3\) is no picture"),
    "batch": (PIXELS[None], "is no picture"),
    "vector": (PIXELS[0, 0], "is no picture"),
    "no pixels": (PIXELS[:0], "has no pixels"),
    "signed integers": (PIXELS.astype(np.int64), "holds int64"),
    "integers beyond 16 bits": (Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)), "expected 16 bits"),
    "nothing": (None, "not NoneType"),
    "bytes": (b"", "not bytes"),
}


class TestBadPictures:
    @pytest.mark.parametrize("name", BAD_PICTURES)
    def test_bad_pictures_are_refused_in_one_line(self, name):
        source, message = BAD_PICTURES[name]
        with pytest.raises(ValueError, match=message) as caught:
            load_image(source)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif"])
    def test_truncated_files_are_named(self, tmp_path, suffix):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(image(100, 100)).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"picture .*cut\.{suffix} cannot be read") as caught:
            load_image(path)
        assert "\n" not in str(caught.value)

    def test_missing_and_foreign_files_are_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"picture .*absent\.png cannot be read"):
            load_image(tmp_path / "absent.png")
        path = tmp_path / "program.eps"
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
        with pytest.raises(ValueError, match=r"picture .*program\.eps cannot be read"):
            load_image(path)
        with pytest.raises(ValueError, match="cannot be read"):
            load_image(tmp_path)

    def test_the_limit_is_checked_before_decoding(self, tmp_path):
        path = tmp_path / "large.png"
        Image.new("RGB", (40, 30)).save(path)
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"IDAT") + 8])
        with pytest.raises(ValueError, match=r"large\.png cannot be read"):
            load_image(path, max_pixels=1200)
        with pytest.raises(ValueError, match=r"large\.png has 30 x 40 = 1200 pixels, the limit is 1199"):
            load_image(path, max_pixels=1199)
        for form in (Image.new("L", (40, 30)), np.zeros((30, 40), np.uint8), torch.zeros(3, 30, 40)):
            with pytest.raises(ValueError, match="the limit is 1199"):
                load_image(form, max_pixels=1199)

    def test_a_bomb_is_refused_by_its_header(self, tmp_path):
        path = tmp_path / "bomb.ppm"
        path.write_bytes(b"P6 60000 60000 255\n")
        with pytest.raises(ValueError, match=r"bomb\.ppm"):
            load_image(path)


class TestUploads:
    """What people upload to the app, by the names of the files."""

    @pytest.mark.parametrize("name", ["animation.gif", "animation.webp", "animation.png"])
    def test_of_animations_the_first_frame_is_taken(self, tmp_path, name):
        frames = [Image.new("RGB", (20, 12), colour) for colour in ("red", "blue", "green")]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
        assert_picture(load_image(tmp_path / name), np.full((12, 20, 3), (255, 0, 0)), tolerance=3)

    def test_of_a_phone_s_pair_of_pictures_the_first_is_taken(self, tmp_path):
        first, second = Image.new("RGB", (24, 16), "red"), Image.new("RGB", (24, 16), "blue")
        first.save(tmp_path / "pair.jpg", format="MPO", save_all=True, append_images=[second])
        with Image.open(tmp_path / "pair.jpg") as written:
            assert written.format == "MPO"
        assert_picture(load_image(tmp_path / "pair.jpg"), np.full((16, 24, 3), (255, 0, 0)), tolerance=3)
        assert picture_size(tmp_path / "pair.jpg") == (16, 24)

    def test_a_phone_s_photo_is_turned_upright(self, tmp_path):
        upright = np.zeros((40, 24, 3), np.uint8)
        upright[:20] = 255
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 6
        Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "photo.jpg", exif=exif, quality=95)
        assert_picture(load_image(tmp_path / "photo.jpg"), upright, tolerance=12)
        assert picture_size(tmp_path / "photo.jpg") == (40, 24)

    def test_half_seen_colours_over_white_are_those_of_arithmetic(self, tmp_path):
        rgba = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
        Image.fromarray(rgba).save(tmp_path / "glass.png")
        share = rgba[..., 3:] / 255
        assert_picture(load_image(tmp_path / "glass.png"), np.round(rgba[..., :3] * share + 255 * (1 - share)), 1)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'),
            ("letter.png", b"Dear Sir or Madam,\n"),
            ("nothing.jpg", b""),
            ("page.pdf", b"%PDF-1.4\n1 0 obj\n<< >>\nendobj\n"),
            ("program.png", b"\x7fELF\x02\x01\x01" + bytes(64)),
        ],
    )
    def test_what_is_no_picture_is_told_in_one_line(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        for read in (load_image, picture_size):
            with pytest.raises(ValueError, match=rf"picture .*{name} cannot be read") as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
    def test_a_line_of_pixels_is_a_picture(self, tmp_path, size):
        grey = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
        Image.fromarray(grey).save(tmp_path / "line.png")
        assert_picture(load_image(tmp_path / "line.png"), np.repeat(grey[..., None], 3, axis=2))

    def test_a_small_file_that_unpacks_to_gigabytes_is_refused_by_its_header(self, tmp_path):
        for sides, message in (((20_000, 20_000), "cannot be read|pixels, the limit"), ((10_001, 10_000), "the limit")):
            header = struct.pack(">IIBBBBB", *sides, 8, 2, 0, 0, 0)
            content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
            (tmp_path / "bomb.png").write_bytes(content)
            with pytest.raises(ValueError, match=message) as caught:
                load_image(tmp_path / "bomb.png")
            assert "bomb.png" in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize("mode", ["RGB", "I;16"])
    def test_100_megapixels_are_read_in_bounded_memory_and_without_a_word(self, tmp_path, mode):
        Image.new(mode, (10_000, 10_000), 7 if mode == "I;16" else (7, 8, 9)).save(
            tmp_path / "large.png", compress_level=1
        )
        done = subprocess.run(
            [sys.executable, "-c", READ_AND_MEASURE, tmp_path / "large.png"], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        size, grown_mib = done.stdout.splitlines()
        assert size == "(10000, 10000)"
        assert int(grown_mib) < 900  # Pillow holds four bytes a pixel: the file's picture and the one returned


# Reads a picture and prints its size, and by how many MiB the process grew at most.
READ_AND_MEASURE = """
import resource, sys
from osprey_tp.images import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(load_image(sys.argv[1]).size)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
