"""Hostile studies: what a broken scanner, a bad disk or an attacker may put into an inbox.

Each is made from a seed. None can be read without harm by a naive reader, or none should be:
mutated files of every transfer syntax and volume format, bombs, links and pipes, data files that
lie elsewhere, odd names, and headers with escape sequences, markup and impossible numbers.
"""

import gzip
import os
import socket
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from imaging.dicom.writer import write_series
from imaging.volume import Geometry, StudyHeader, Volume

SLICES, SIDE = 12, 40
CANARY = "canary-7f3a91"
"""Patient of the files that lie outside of the inbox: no output may have this name."""

_MARKUP = "<script>alert(1)</script>"
_TEXTS = (
    "\x1b]0;title\x07\x1b[2J", _MARKUP, "'; DROP TABLE studies; --", "../../../etc/passwd", "%s%n",
    "\u202egnp.exe", "A" * 100_000, "", " ", "\0\0\0", "Müller^日本", "{{ 7 * 7 }}", "nan", "1e999",
    "9" * 5000,
)  # fmt: skip
_NUMBERS = ("nan", "inf", "-1", "0", "1e308", "-1e308", "1e-308", "99999999999", "0.1\\0.1", "x",
            "-33000", "-33792", "65536", "9" * 4096, "9" * 5000)  # fmt: skip
_KEYWORDS = (
    "PatientID", "PatientName", "PatientAge", "StudyDate", "SeriesDescription", "Modality",
    "ImageType", "Manufacturer", "ConvolutionKernel", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "NumberOfFrames",
    "PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient",
    "RescaleSlope", "RescaleIntercept", "InstanceNumber", "PixelPaddingValue", "SeriesNumber",
    "AcquisitionNumber", "ImagesInAcquisition",
)  # fmt: skip
_CHARSETS = (b"ISO_IR 192", b"ISO\0IR 100", bytes(10), b"ISO_IR 999", b"\\" * 10, b"\xff" * 10)
_IMAGE_TYPE = b"\x08\0\x08\0"
"""The tag before which the character set lies."""
_NAMES = (
    "\x1b[2J\x1b[31mred", "line\nbreak", "-rf", "spaces  and 'quotes\"", "日本\u202e語",
    "$(reboot)", "%s%n", "a" * 200, "CON", "tab\tname", _MARKUP.replace("/", ""),
    os.fsdecode(b"\xff\xfe\x80"),
)  # fmt: skip
_HEAD_BYTES = 2500  # where a mutation does more than change a pixel


def mutated(content: bytes, chance: Random) -> bytes:
    """Flip, cut, delete or insert bytes, most often in the header."""
    mutant = bytearray(content)
    end = len(mutant) if chance.random() < 0.3 else min(len(mutant), _HEAD_BYTES)
    at = chance.randrange(end)
    match chance.choice(("flip", "cut", "delete", "insert")):
        case "flip":
            for _ in range(chance.randint(1, 12)):
                mutant[chance.randrange(end)] = chance.randrange(256)
        case "cut":
            del mutant[at:]
        case "delete":
            del mutant[at : at + chance.randint(1, 200)]
        case _:
            mutant[at:at] = chance.randbytes(chance.randint(1, 200))
    return bytes(mutant)


@dataclass(frozen=True, eq=False)
class Materials:
    """What hostile studies are made of.

    Attributes:
        series: transfer syntax to the files of a small sound series.
        series_uid: of all of them.
        volumes: name of a volume file to its parts, the file itself first.
        elsewhere: a folder outside of the inbox, with a series, ``canary.mha`` and ``canary.raw``.
    """

    series: Mapping[str, list[bytes]]
    series_uid: str
    volumes: Mapping[str, Mapping[str, bytes]]
    elsewhere: Path


def materials(elsewhere: Path) -> Materials:
    """Make the sound files, and the files that no reader may open, in ``elsewhere``."""
    hu = np.full((SLICES, SIDE, SIDE), -1000, np.int16)
    hu[:, 6:34, 4:36] = 40
    hu[:, 10:30, 7:18] = hu[:, 10:30, 22:33] = -850
    volume = Volume(hu, Geometry((3.0, 2.5, 2.5)))
    write_series(volume, elsewhere / "series", header=StudyHeader(CANARY, CANARY))
    canary = sitk.GetImageFromArray(hu)
    canary.SetSpacing((2.5, 2.5, 3.0))
    sitk.WriteImage(canary, str(elsewhere / "canary.mha"))
    (elsewhere / "canary.raw").write_bytes(hu.tobytes())
    with TemporaryDirectory() as folder:
        # identifiers that no phantom has
        files = write_series(volume, Path(folder, "series"), seed=734_091)
        images = [dcmread(file) for file in files]
        series, uid = _transcoded(images), str(images[0].SeriesInstanceUID)
        return Materials(series, uid, _volumes(canary, Path(folder)), elsewhere)


def _transcoded(images: Sequence[Dataset]) -> dict[str, list[bytes]]:
    """Encode a series in the transfer syntaxes for which an encoder is installed."""
    plain = [_saved(image) for image in images]

    def each(change: Callable[[Dataset], None]) -> list[bytes]:
        copies = [dcmread(BytesIO(one)) for one in plain]
        for copy in copies:
            change(copy)
        return [_saved(copy) for copy in copies]

    return {
        "explicit": plain,
        "implicit": each(lambda image: _recode(image, ImplicitVRLittleEndian)),
        "big endian": each(lambda image: _recode(image, ExplicitVRBigEndian)),
        "deflated": each(lambda image: _recode(image, DeflatedExplicitVRLittleEndian)),
        "RLE": each(lambda image: image.compress(RLELossless, generate_instance_uid=False)),
        "JPEG Lossless": each(lambda image: _by_gdcm(image, "JPEG")),
        "JPEG 2000": each(lambda image: _by_gdcm(image, "JPEG2000")),
    }


def _recode(image: Dataset, syntax: UID) -> None:
    if syntax == ExplicitVRBigEndian:
        image.PixelData = np.frombuffer(image.PixelData, "<i2").byteswap().tobytes()
        image["PixelData"].VR = "OW"
    image.file_meta.TransferSyntaxUID = syntax


def _saved(image: Dataset) -> bytes:
    stream, syntax = BytesIO(), image.file_meta.TransferSyntaxUID
    order = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
    dcmwrite(stream, image, **order, force_encoding=True)
    return stream.getvalue()


def _by_gdcm(image: Dataset, encoder: str) -> None:
    """Compress one image with GDCM, and take its pixel data over."""
    with TemporaryDirectory() as folder:
        values = np.frombuffer(image.PixelData, "<i2").reshape(1, image.Rows, image.Columns)
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(encoder)
        writer.SetFileName(f"{folder}/one.dcm")
        writer.Execute(sitk.GetImageFromArray(values))
        compressed = dcmread(f"{folder}/one.dcm")
    image.file_meta.TransferSyntaxUID = UID(compressed.file_meta.TransferSyntaxUID)
    image["PixelData"] = compressed["PixelData"]


def _volumes(image: sitk.Image, folder: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd"):
        for packed in (False, True):
            place = folder / f"{name} {packed}"
            place.mkdir()
            sitk.WriteImage(image, str(place / name), useCompression=packed)
            parts = sorted(place.iterdir(), key=lambda one: one.name != name)
            found[place.name] = {one.name: one.read_bytes() for one in parts}
    return found


BOMBS = ("deflated", "nii.gz", "nii", "nrrd", "mha", "mhd", "metres")
"""Formats of files that inflate or announce gigabytes; ``metres`` states a body of nine metres."""

Make = Callable[[Path, Random, Materials], Path]
"""Writes one study into a folder, and returns its file or folder; its data file lies beside it."""


def mutated_series(folder: Path, chance: Random, stuff: Materials) -> Path:
    """Write a series in which one to three files are mutated."""
    files = list(stuff.series[chance.choice([*stuff.series])])
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(files))
        files[at] = mutated(files[at], chance)
    return _series(folder, chance, stuff, files)


def mutated_volume(folder: Path, chance: Random, stuff: Materials) -> Path:
    """Write a volume file of which one part is mutated."""
    parts = dict(stuff.volumes[chance.choice([*stuff.volumes])])
    victim = chance.choice([*parts])
    return _volume(folder, {**parts, victim: mutated(parts[victim], chance)})


def hostile_header(folder: Path, chance: Random, stuff: Materials) -> Path:
    """Write a series with texts and numbers in its headers that no scanner writes."""
    images = [dcmread(BytesIO(content)) for content in stuff.series["explicit"]]
    for keyword in chance.sample(_KEYWORDS, chance.randint(1, 3)):
        value = chance.choice(_TEXTS if chance.random() < 0.5 else _NUMBERS)
        raw = value.encode("utf-8", "surrogateescape")
        for image in images if chance.random() < 0.5 else chance.sample(images, 2):
            tag = Tag(keyword)
            vr = image[tag].VR if tag in image else "LO"
            vr = vr if vr == "US" else chance.choice((vr, vr, vr, "OB"))
            even = raw + b" " * (len(raw) % 2)
            even = struct.pack("<H", chance.randrange(65536)) if vr == "US" else even
            even = even[:65534]  # the longest that has a length in such an element
            image[tag] = RawDataElement(tag, vr, len(even), even, 0, False, True)
    charset = b"\x08\0\x05\0CS\x0a\0" + chance.choice(_CHARSETS) + _IMAGE_TYPE
    files = [_saved(image).replace(_IMAGE_TYPE, charset, 1) for image in images]
    return _series(folder, chance, stuff, files)


def hostile_fields(folder: Path, chance: Random, stuff: Materials) -> Path:
    """Write an NRRD or MetaImage header with a field that says something impossible."""
    name = chance.choice([n for n in stuff.volumes if ".nii" not in n])
    parts = dict(stuff.volumes[name])
    first = next(iter(parts))
    head, mark, rest = parts[first].partition(b"\n\n" if ".n" in name else b"ElementDataFile")
    lines = head.split(b"\n")
    at = chance.randrange(len(lines))
    key = lines[at].replace(b"=", b":", 1).partition(b":")[0]
    separator = b": " if ".n" in name else b"= "
    value = chance.choice([*_TEXTS, *_NUMBERS, "9 9 9 9", "100000 100000 100000", "0 0 0"])
    lines[at] = key + separator + value.encode("utf-8", "replace")
    return _volume(folder, {**parts, first: b"\n".join(lines) + mark + rest})


def bomb(folder: Path, chance: Random, stuff: Materials) -> Path:
    """Write a small file that inflates to gigabytes, or announces them."""
    return bomb_of(chance.choice(BOMBS), folder, chance, stuff)


def bomb_of(kind: str, folder: Path, chance: Random, stuff: Materials) -> Path:
    """Write a bomb of one of the `BOMBS`."""
    if kind == "deflated":
        study = _series(folder, chance, stuff, stuff.series["deflated"])
        victim = sorted(study.iterdir())[chance.randrange(SLICES)]
        meta, data = _inflated(victim.read_bytes())
        # the same header, and pixel data of zeros that are as many as it says
        pixels, size = data.rindex(b"\xe0\x7f\x10\x00"), chance.choice((700, 1500)) << 20
        start = data[:pixels] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", size)
        victim.write_bytes(meta + _deflated(start, size >> 20))
        return study
    side = chance.choice((1024, 2048, 30000))
    if kind in ("nii.gz", "nii"):
        header = bytearray(stuff.volumes["a.nii False"]["a.nii"][:352])
        header[42:48] = struct.pack("<3h", 512, 512, min(side, 4096))
        header[70:74] = struct.pack("<2h", 64, 64)
        packed = gzip.compress(bytes(header)) + _zeros(min(side, 1024))
        return _volume(folder, {f"a.{kind}": packed if kind == "nii.gz" else bytes(header)})
    if kind == "metres":
        image = sitk.Image(300, 300, 300, sitk.sitkInt16)
        image.SetSpacing((3.0, 3.0, 10.0))
        sitk.WriteImage(image, str(folder / "a.mha"), useCompression=True)
        return folder / "a.mha"
    parts = dict(stuff.volumes[f"a.{kind} True"])
    first = next(iter(parts))
    old, new = f"{SIDE} {SIDE} {SLICES}".encode(), f"{side} {side} {side}".encode()
    for before, after in ((old, new), (b"short", b"double"), (b"SHORT", b"DOUBLE")):
        parts[first] = parts[first].replace(before, after, 1)
    return _volume(folder, parts)


def _inflated(content: bytes) -> tuple[bytes, bytes]:
    """Split a deflated DICOM file into its meta information and its inflated data set."""
    start = 144 + int.from_bytes(content[140:144], "little")
    return content[:start], zlib.decompress(content[start:], -15)


def _deflated(start: bytes, zero_mb: int = 0) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = [packer.compress(start), *(packer.compress(bytes(1 << 20)) for _ in range(zero_mb))]
    return b"".join(packed) + packer.flush()


def _zeros(count_mb: int) -> bytes:
    """Return megabytes of zeros as a member of a gzip file."""
    stream = BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=9, mtime=0) as target:
        for _ in range(count_mb):
            target.write(bytes(1 << 20))
    return stream.getvalue()


def special_file(folder: Path, chance: Random, stuff: Materials) -> Path:
    """Write a series of which a slice is a link, a pipe or a socket, or with one beside it."""
    study = _series(folder, chance, stuff, stuff.series["explicit"])
    place = chance.choice([chance.choice(sorted(study.iterdir())), study / "viewer.bin"])
    place.unlink(missing_ok=True)
    outside = [*(stuff.elsewhere / "series").iterdir(), stuff.elsewhere / "series"]
    others = [stuff.elsewhere / "canary.mha", Path("/dev/zero"), Path("/nowhere"), place]
    match chance.choice(("link", "link", "pipe", "socket")):
        case "link":
            place.symlink_to(chance.choice([*outside, *others]))
        case "pipe":
            os.mkfifo(place)
        case _:
            with socket.socket(socket.AF_UNIX) as server, TemporaryDirectory() as short:
                server.bind(f"{short}/s")
                os.rename(f"{short}/s", place)
    return study


def data_elsewhere(folder: Path, chance: Random, stuff: Materials) -> Path:
    """Write a header whose voxels lie outside of the inbox, or are a link or a pipe."""
    name = chance.choice(("a.mhd False", "a.nhdr False"))
    (first, text), (raw, data) = stuff.volumes[name].items()
    canary = stuff.elsewhere / "canary.raw"
    up = os.path.relpath(canary, "/").join(("../" * 20, ""))
    says = chance.choice((str(canary), up, f"LIST\n{canary}", f"{canary} %d 1 1 1", "/dev/zero",
                          raw, raw, f"./{raw}", f"{raw}\n# {canary}", "."))  # fmt: skip
    study = _volume(folder, {first: text.replace(raw.encode(), says.encode())})
    place = study.parent / raw
    if says != raw:
        if chance.random() < 0.5:
            place.write_bytes(data)
    elif chance.random() < 0.5:
        place.symlink_to(canary)
    else:
        os.mkfifo(place)
    return study


def odd_name(folder: Path, chance: Random, stuff: Materials) -> Path:
    """Write a sound or mutated series, in a folder or with files of odd names."""
    study = mutated_series(folder, chance, stuff)
    name = chance.choice(_NAMES)
    victim = chance.choice(sorted(study.iterdir()))
    victim.rename(victim.with_name(f"{name}.dcm"))
    return study.rename(study.with_name(f"{study.name}{name}"))


def junk(folder: Path, chance: Random, stuff: Materials) -> Path:
    """Write what is no study at all: noise, empty files, archives, a folder of folders."""
    contents = {"empty": b"", "zeros": bytes(5000), "text": b"hello", "deep": b"DICM" * 99}
    kind = chance.choice(("noise", *contents))
    if kind == "noise":
        name = chance.choice(("a.nii", "a.nrrd", "a.mha", "a.nii.gz"))
        return _volume(folder, {name: chance.randbytes(4000)})
    study = folder / "study"
    deep = study / "/".join("d" * 20) if kind == "deep" else study
    deep.mkdir(parents=True)
    suffix = chance.choice(("", ".dcm", ".1", ".zip"))
    for number in range(chance.randint(1, 5)):
        (deep / f"{number}{suffix}").write_bytes(contents[kind])
    (deep / "one.dcm").write_bytes(mutated(stuff.series["explicit"][0], chance))
    return study


KINDS: dict[str, tuple[Make, int]] = {
    "mutated series": (mutated_series, 30),
    "mutated volume": (mutated_volume, 20),
    "hostile header": (hostile_header, 13),
    "hostile fields": (hostile_fields, 12),
    "bomb": (bomb, 2),
    "special file": (special_file, 8),
    "data elsewhere": (data_elsewhere, 7),
    "odd name": (odd_name, 4),
    "junk": (junk, 4),
}
"""What is made, and how often of 100."""


def make_study(number: int, seed: int, folder: Path, stuff: Materials) -> tuple[str, Path]:
    """Make the study of this number in a new ``folder``; returns its kind and its path.

    The same seed and number make the same study.
    """
    kind = kind_of(number, seed)
    folder.mkdir(parents=True)
    return kind, KINDS[kind][0](folder, Random(f"{seed} {number}"), stuff)


def kind_of(number: int, seed: int) -> str:
    """Return the kind of the study of this number."""
    chance = Random(f"kind {seed} {number}")
    return chance.choices([*KINDS], [weight for _, weight in KINDS.values()])[0]


def _series(folder: Path, chance: Random, stuff: Materials, files: list[bytes]) -> Path:
    """Write a series with identifiers of its own, which begin with those of the sound one."""
    study = folder / "study"
    study.mkdir()
    old = stuff.series_uid.encode()
    new = old[:-12] + str(chance.randrange(10**11, 10**12)).encode()
    for number, content in enumerate(files):
        own = content.replace(old, new)
        if b"1.2.840.10008.1.2.1.99" in content[:1000]:
            with suppress(zlib.error):  # it may be mutated
                meta, data = _inflated(content)
                own = meta + _deflated(data.replace(old, new))
        (study / f"{number:03}.dcm").write_bytes(own)
    return study


def _volume(folder: Path, parts: Mapping[str, bytes]) -> Path:
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    return folder / next(iter(parts))
