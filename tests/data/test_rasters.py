"""Pictures and masks as arrays, with their places on the earth."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from adaptome.core.errors import DataError, MissingExtraError
from adaptome.data.masks import binary, classes, read_mask
from adaptome.data.rasters import (
    Place,
    header_of,
    mask_bytes,
    read_header,
    read_raster,
    read_rgb,
    require_alike,
)

CRS = 'LOCAL_CS["site",UNIT["metre",1]]'


def geotiff(path, array: np.ndarray, west: float = 500.0, pixel: float = 2.0, crs: int | None = 32650):
    rasterio = pytest.importorskip("rasterio")
    bands = np.moveaxis(array, -1, 0)
    about = dict(
        driver="GTiff", height=array.shape[0], width=array.shape[1], count=len(bands), dtype=str(array.dtype)
    )
    placed = (
        dict(crs=f"EPSG:{crs}", transform=rasterio.Affine(pixel, 0, west, 0, -pixel, 900.0)) if crs else {}
    )
    with rasterio.open(path, "w", **about, **placed) as file:
        file.write(bands)
    return path


def test_a_raster_comes_with_its_place_and_a_mask_goes_back_to_it(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    stored = np.arange(5 * 6 * 4, dtype=np.uint8).reshape(5, 6, 4)
    found = read_rgb(geotiff(tmp_path / "a.tif", stored), (4, 3, 2))
    assert np.array_equal(found.pixels, stored[..., [3, 2, 1]]) and found.place is not None
    assert found.place.transform == (2.0, 0.0, 500.0, 0.0, -2.0, 900.0)
    assert read_header(tmp_path / "a.tif") == header_of(found)
    mask = (np.arange(30).reshape(5, 6) % 3 == 0).astype(np.uint8) * 255
    with rasterio.open(io.BytesIO(mask_bytes(mask, found.place))) as file:
        assert np.array_equal(file.read(1), mask) and file.crs.to_epsg() == 32650
        assert tuple(file.transform)[:6] == found.place.transform


def test_values_of_more_than_a_byte_need_the_ends_of_a_stretch(tmp_path):
    stored = np.array([[[0, 0, 0], [3000, 1500, 9000]]], dtype=np.uint16)
    path = geotiff(tmp_path / "a.tif", stored)
    with pytest.raises(DataError, match=r"(?s)holds uint16 from 0 to 9000.*task.stretch='\[0, 9000\]'"):
        read_rgb(path)
    assert read_rgb(path, None, (0, 3000)).pixels.tolist() == [[[0, 0, 0], [255, 128, 255]]]
    with pytest.raises(DataError, match="has 3 bands"):
        read_rgb(path, (1, 2, 4))


def test_pictures_of_other_sizes_or_places_are_told_by_name(tmp_path):
    grey = np.zeros((4, 6, 3), np.uint8)
    first = geotiff(tmp_path / "a.tif", grey)
    for name, changes, said in (
        (
            "b.tif",
            {"west": 502.0},
            r"lie at different places: \(500, 900\) with pixels of 2 by -2 against \(502, 900\)",
        ),
        ("c.tif", {"crs": 32651}, "lie at different places"),
        ("d.tif", {"crs": None}, r"d.tif has no georeference"),
    ):
        other = geotiff(tmp_path / name, grey, **changes)
        with pytest.raises(DataError, match=said) as told:
            require_alike(read_header(first), read_header(other))
        assert name in str(told.value)
    with pytest.raises(DataError, match=r"a.tif is 6 x 4 pixels and the picture is 5 x 4"):
        require_alike(read_header(first), header_of(read_raster(grey[:, :5])))
    require_alike(read_header(first), read_header(geotiff(tmp_path / "e.tif", grey, west=500.0001)))


def test_without_rasterio_a_plain_tiff_is_read_and_a_place_is_not_lost(tmp_path, monkeypatch):
    geotiff(tmp_path / "placed.tif", np.zeros((4, 6, 3), np.uint8))
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(tmp_path / "plain.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert read_raster(tmp_path / "plain.tif").pixels[0, 0].tolist() == [7, 7, 7]
    for asked in (read_raster, read_header):
        with pytest.raises(MissingExtraError, match=r"adaptome\[geo\]"):
            asked(tmp_path / "placed.tif")
    with pytest.raises(MissingExtraError, match=r"adaptome\[geo\]"):
        mask_bytes(np.zeros((2, 2), np.uint8), Place(CRS, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)))


@pytest.mark.parametrize("name", ["torn.png", "torn.tif"])
def test_a_file_that_is_no_picture_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"II*\0 not a picture")
    for asked in (read_raster, read_header):
        with pytest.raises(DataError, match=name):
            asked(tmp_path / name)


# -- masks ---------------------------------------------------------------------------------------------------------------


def test_masks_are_read_from_grey_values_palettes_and_channels_alike(tmp_path):
    numbers = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    Image.fromarray(numbers).save(tmp_path / "grey.png")
    coloured = Image.fromarray(numbers)
    coloured.putpalette([i for n in range(256) for i in (n, 255 - n, 9)])
    coloured.save(tmp_path / "palette.png")
    Image.fromarray(np.repeat(numbers[..., None], 3, -1)).save(tmp_path / "three.png")
    for name in ("grey.png", "palette.png", "three.png"):
        assert np.array_equal(read_mask(str(tmp_path / name))[0], numbers), name
    Image.fromarray(np.stack([numbers, numbers, numbers * 0], -1)).save(tmp_path / "colours.png")
    with pytest.raises(DataError, match=r"colours.png: a mask has one number per pixel"):
        read_mask(str(tmp_path / "colours.png"))


def test_a_soft_mask_does_not_vanish_and_masks_of_ones_are_masks():
    assert binary(np.array([[0, 127, 128, 254, 255]])).tolist() == [[0, 0, 1, 1, 1]]
    assert binary(np.array([[0, 1, 1]])).tolist() == [[0, 1, 1]]
    assert binary(np.array([[0, 1, 255]]), ignored=255).tolist() == [[0, 1, 255]]
    assert binary(np.array([[0, 40, 90]]), threshold=50).tolist() == [[0, 0, 1]]


def test_numbers_that_are_no_class_are_told():
    assert classes(np.array([[0, 2, 255]]), 3, "m.png").tolist() == [[0, 2, 255]]
    with pytest.raises(DataError, match=r"m.png holds the class number 3; there are 3 classes"):
        classes(np.array([[0, 3]]), 3, "m.png")
    with pytest.raises(DataError, match="expected whole numbers"):
        classes(np.array([[0.5]]), 3, "m.png")
