"""Pictures as arrays: photographs through Pillow, and rasters with a place on the earth through rasterio where it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptome.core.errors import DataError, MissingExtraError

TIFFS = (".tif", ".tiff")
#: tags of a TIFF that say where on the earth it lies: pixel scale, tie points, transformation, keys
_GEO_TAGS = (33550, 33922, 34264, 34735)


@dataclass(frozen=True)
class Place:
    """Where a raster lies: its coordinate reference system as WKT, and the affine map (a, b, c, d, e, f) of pixels to it."""

    crs: str
    transform: tuple[float, ...]

    def same_as(self, other: Place) -> bool:
        """Whether both lie alike, to a thousandth of a pixel."""
        a, b = np.asarray(self.transform), np.asarray(other.transform)
        return self.crs == other.crs and bool(np.abs(a - b).max() <= 1e-3 * max(abs(a[0]), abs(a[1]), 1e-12))


@dataclass(frozen=True)
class Raster:
    """A picture [height, width, bands] as stored, and where it lies, if it says so."""

    pixels: np.ndarray
    place: Place | None = None
    name: str = "the picture"


def read_raster(one: Any, fourth: bool = False) -> Raster:
    """A raster of a path, a PIL image or an array [height, width(, bands)].

    Args:
        fourth: keep the fourth band of a photograph, which is its transparency elsewhere.

    Raises:
        DataError: a file that cannot be read. MissingExtraError: a raster with a place, and no rasterio to read it.
    """
    if isinstance(one, Raster):
        return one
    if isinstance(one, str | Path):
        path = Path(one)
        if path.suffix.lower() in TIFFS:
            return _tiff(path)
        read = read_array(path) if path.suffix.lower() == ".npy" else _photo(path, fourth)
        return Raster(read, None, str(path))
    return Raster(_bands_last(np.asarray(one)))


@dataclass(frozen=True)
class Header:
    """Size and place of a picture, without its pixels."""

    name: str
    width: int
    height: int
    place: Place | None = None


def read_header(path: str | Path) -> Header:
    """The header of a file.

    Raises:
        DataError: it cannot be read. MissingExtraError: it has a place, and no rasterio is there to read it.
    """
    path = Path(path)
    if path.suffix.lower() in TIFFS:
        with _opened(path) as file:
            if file is not None:
                return Header(str(path), file.width, file.height, _place(file))
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    try:
        with Image.open(path) as opened:
            return Header(str(path), *opened.size)
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} is not an image that can be read: {error}") from error


def header_of(raster: Raster) -> Header:
    """The header of a raster that was read."""
    return Header(raster.name, raster.pixels.shape[1], raster.pixels.shape[0], raster.place)


def read_rgb(one: Any, bands: tuple[int, ...] | None = None, stretch: tuple[float, float] | None = None) -> Raster:  # fmt: skip
    """A raster as RGB [height, width, 3] of uint8.

    Args:
        bands: numbers, from 1, of the three that are taken for red, green and blue; None for the first three, or the only one.
        stretch: the values that become 0 and 255; None leaves uint8 as it is.

    Raises:
        DataError: a band that is not there, or values other than 0 to 255 without a stretch; names the file.
    """
    raster = read_raster(one, fourth=bands is not None and max(bands) > 3)
    there = raster.pixels.shape[-1]
    chosen = bands or ((1, 2, 3) if there >= 3 else (1, 1, 1))
    if max(chosen) > there or min(chosen) < 1:
        raise DataError(f"{raster.name} has {there} bands; bands={list(chosen)} names one that is not there.")
    pixels = raster.pixels[..., [band - 1 for band in chosen]]
    if stretch is not None:
        low, high = stretch
        shares = (np.nan_to_num(pixels.astype(np.float32), nan=low) - low) / (high - low)
        pixels = np.round(np.clip(shares, 0, 1) * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        whole = np.issubdtype(pixels.dtype, np.integer) and pixels.min() >= 0 and pixels.max() <= 255
        if not whole:
            raise DataError(
                f"{raster.name} holds {pixels.dtype} from {pixels.min():g} to {pixels.max():g}; expected 0 to 255.\n"
                f"  Say which values are black and white, the same for every picture: task.stretch='[{pixels.min():g}, {pixels.max():g}]'."
            )
        pixels = pixels.astype(np.uint8)
    return Raster(np.ascontiguousarray(pixels), raster.place, raster.name)


def require_alike(first: Header, second: Header) -> None:
    """Both must show the same place, pixel by pixel.

    Raises:
        DataError: sizes or places differ, or only one has a place; names both.
    """
    sizes = [f"{one.width} x {one.height}" for one in (first, second)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{first.name} is {sizes[0]} pixels and {second.name} is {sizes[1]}; they must show the same place, pixel by pixel.\n"
            "  Register the one to the other first, e.g. with gdalwarp."
        )
    if (first.place is None) != (second.place is None):
        without = first if first.place is None else second
        raise DataError(f"{without.name} has no georeference, and the other picture of its pair has one.")
    if first.place is not None and second.place is not None and not first.place.same_as(second.place):
        raise DataError(
            f"{first.name} and {second.name} lie at different places: {_told(first.place)} against {_told(second.place)}.\n"
            "  Register the one to the other first, e.g. with gdalwarp."
        )


def _told(place: Place) -> str:
    a, b, c, d, e, f = place.transform
    return f"({c:g}, {f:g}) with pixels of {a:g} by {e:g}" + (f", turned by ({b:g}, {d:g})" if b or d else "")


def mask_bytes(mask: np.ndarray, place: Place) -> bytes:
    """A mask [height, width] of uint8 as a GeoTIFF at a place.

    Raises:
        MissingExtraError: rasterio is not installed.
    """
    rasterio = _rasterio()
    height, width = mask.shape
    about = dict(driver="GTiff", height=height, width=width, count=1, dtype="uint8", compress="deflate")
    with rasterio.MemoryFile() as memory:
        with memory.open(**about, crs=place.crs, transform=rasterio.Affine(*place.transform)) as file:
            file.write(mask.astype(np.uint8), 1)
        held: bytes = memory.read()
    return held


# -- files -------------------------------------------------------------------------------------------------------------


def read_array(path: Path) -> np.ndarray:
    """A picture [height, width, bands] of a .npy file, never unpickling.

    Raises:
        DataError: it is no such array.
    """
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not an array that can be read: {error}") from error
    return _bands_last(found)


def _photo(path: Path, fourth: bool = False) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    try:
        with Image.open(path) as opened:
            whole = ("RGB", "L", "I", "F", "I;16", *(["RGBA"] if fourth else []))
            kept = opened if opened.mode in whole else opened.convert("RGB")
            return _bands_last(np.asarray(kept))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not an image that can be read: {error}") from error


def _tiff(path: Path) -> Raster:
    with _opened(path) as file:
        if file is None:
            return Raster(_photo(path), None, str(path))
        import rasterio

        try:
            return Raster(np.moveaxis(file.read(), 0, -1), _place(file), str(path))
        except rasterio.errors.RasterioError as error:
            raise DataError(f"{path} is not a raster that can be read: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, open in rasterio; None where it is not installed and the file has no place that would be lost."""
    try:
        import rasterio
    except ImportError:
        if _has_place(path):
            raise MissingExtraError("rasterio", "geo") from None
        yield None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            file = rasterio.open(path)
        except (rasterio.errors.RasterioError, OSError) as error:
            raise DataError(f"{path} is not a raster that can be read: {error}") from error
        with file:
            yield file


def _place(file: Any) -> Place | None:
    return None if file.crs is None else Place(file.crs.to_wkt(), tuple(file.transform)[:6])


def _has_place(path: Path) -> bool:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    try:
        with Image.open(path) as opened:
            tags: Any = getattr(opened, "tag_v2", {})
            return any(tag in tags for tag in _GEO_TAGS)
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} is not an image that can be read: {error}") from error


def _rasterio() -> Any:
    try:
        import rasterio
    except ImportError:
        raise MissingExtraError("rasterio", "geo") from None
    return rasterio


def _bands_last(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise DataError(
            f"a picture has the shape {list(array.shape)}; expected [height, width] or [height, width, bands]."
        )
    return array
