"""Which kind of file this is, decided by its bytes alone, and whether its outside can be trusted."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from banaudit.checkpoints.pickles import follow_pickle
from banaudit.errors import UnknownFormatError

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of every file that torch.save wrote before version 1.6."""

MAX_MEMBERS = 100_000
"""Entries of a zip file or tensors of a safetensors file. The largest classifiers have some thousands."""

MAX_RATIO = 100
"""Largest compression of one zip entry. torch does not compress; other tools reach 10 on weights."""

LENGTH_BYTES = 8
"""At the head of a safetensors file, before its header."""

MAX_HEADER_BYTES = 100_000_000
"""Header of a safetensors file; the format's own limit."""


class Format(StrEnum):
    """Kinds of file that are told apart."""

    TORCH_ZIP = "torch zip"
    TORCH_LEGACY = "torch legacy"
    SAFETENSORS = "safetensors"
    TORCHSCRIPT = "TorchScript archive"
    EXPORTED = "torch.export archive (.pt2)"
    PACKAGE = "torch.package archive"
    TORCH_TAR = "torch tar, before version 0.1.10"
    PICKLE = "Python pickle"
    EMPTY = "empty file"
    DAMAGED = "damaged file"
    OTHER = "no checkpoint"


@dataclass(frozen=True)
class Recognised:
    """A file's kind.

    Args:
        format: The kind.
        detail: What it looks like, in words, where it is none that banaudit reads.
    """

    format: Format
    detail: str = ""


_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page: the download went wrong"),
    (b"<html", "a web page: the download went wrong"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"\xfd7zXZ", "an xz file: unpack it first"),
    (b"BZh", "a bzip2 file: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras?); only PyTorch weights are read"),
    (b"\x93NUMPY", "a NumPy array; only PyTorch weights are read"),
    (b"GGUF", "a GGUF file; only PyTorch weights are read"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
)


def recognise(data: bytes) -> Recognised:  # noqa: PLR0911 - one return a kind
    """Tell what a file is by its content; its name plays no part.

    Args:
        data: The whole file.
    """
    if not data:
        return Recognised(Format.EMPTY, "an empty file")
    is_zip = data.startswith(b"PK\x03\x04")
    # Before pickles: the length of a header of 896 bytes starts like one.
    if data[8:9] == b"{" and 1 < int.from_bytes(data[:8], "little") < 2**48:
        # A pickle that ends within the length holds a number or two at most: honest headers can begin like that.
        if is_zip or follow_pickle(data).end > LENGTH_BYTES:
            other = "zip" if is_zip else "pickle"
            return Recognised(Format.OTHER, f"safetensors to one reader, a {other} to another")
        return Recognised(Format.SAFETENSORS)
    if is_zip:
        return _recognise_zip(data)
    if data[:1] == b"\x80" and data[1:2] <= b"\x05" and len(data) > 2:
        return _recognise_pickle(data)
    if data[257:262] == b"ustar":
        old_torch = data.startswith((b"storages\0", b"tensors\0", b"pickle\0", b"sys_info\0", b"./"))
        return Recognised(Format.TORCH_TAR) if old_torch else Recognised(Format.OTHER, "a tar archive: unpack it first")
    for signature, detail in _SIGNATURES:
        if data.startswith(signature):
            return Recognised(Format.OTHER, detail)
    if data[:1] == b"\x08" and (b"pytorch" in data[:64] or b"onnx" in data[:64]):
        return Recognised(Format.OTHER, "an ONNX model; only PyTorch weights are read")
    if follow_pickle(data[: 2**20]).end > 0:  # the old text protocol has no signature
        return Recognised(Format.PICKLE)
    if not data.strip(b"\0"):
        return Recognised(Format.DAMAGED, "nothing but zero bytes: the download or the copy went wrong")
    return Recognised(Format.OTHER, "neither a torch file nor safetensors")


def _recognise_pickle(data: bytes) -> Recognised:
    if follow_pickle(data).magic == TORCH_MAGIC:
        return Recognised(Format.TORCH_LEGACY)
    return Recognised(Format.PICKLE)


def _recognise_zip(data: bytes) -> Recognised:  # noqa: PLR0911 - one return a kind
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.partition("/")[2] if "/" in name else name for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError):
        return Recognised(Format.DAMAGED, "a zip archive that is cut short or damaged")
    present = set(names)
    if "archive_format" in present or any(
        name.startswith("models/") or name == "serialized_exported_program.json" for name in names
    ):
        return Recognised(Format.EXPORTED)
    if ".data/extern_modules" in present:
        return Recognised(Format.PACKAGE)
    if "constants.pkl" in present or any(name.startswith("code/") for name in names):
        return Recognised(Format.TORCHSCRIPT)
    if "data.pkl" in present:
        return Recognised(Format.TORCH_ZIP)
    if names and all(name.endswith(".npy") for name in names):
        return Recognised(Format.OTHER, "a NumPy archive; only PyTorch weights are read")
    return Recognised(Format.OTHER, "a zip archive without a torch checkpoint inside")


@dataclass(frozen=True)
class TorchArchive:
    """The parts of a torch zip file that a loader needs.

    Args:
        pickle: Bytes of ``data.pkl``.
        byte_order: ``little`` or ``big``.
        storages: Storage key -> its bytes.
    """

    pickle: bytes
    byte_order: bytes
    storages: dict[str, bytes]

    def repacked(self, keys: Iterable[str]) -> io.BytesIO:
        """A plain zip file with the pickle and some of the storages, and nothing else.

        Two readers can disagree on what a crafted zip contains; a file that was written here has one reading only.

        Args:
            keys: Keys of the storages to put in; they leave the archive, as a large network need not be held twice.
        """
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", self.pickle)
            archive.writestr("archive/byteorder", self.byte_order)
            archive.writestr("archive/version", b"3\n")
            for key in keys:
                archive.writestr(f"archive/data/{key}", self.storages.pop(key))
        stream.seek(0)
        return stream


def open_torch_archive(data: bytes, name: str) -> TorchArchive:
    """Take a torch zip file apart, after a look at the sizes that it declares.

    Args:
        data: The whole file.
        name: What to call it in a message.

    Raises:
        UnknownFormatError: It is a zip bomb, is damaged, or has parts that contradict each other.
    """
    if data.count(b"PK\x01\x02") > 2 * MAX_MEMBERS:
        raise UnknownFormatError(f"{name}: refused, a zip archive of more than {MAX_MEMBERS} entries is no checkpoint")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_sizes(members, len(data), name)
            if not _has_one_reading(data, members, archive.start_dir):
                raise UnknownFormatError(
                    f"{name}: refused, another reader may find other entries in this zip archive; no version of "
                    "torch.save writes such a file"
                )
            pickles = [member.filename for member in members if member.filename.partition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise UnknownFormatError(f"{name}: expected one data.pkl in the archive, found {len(pickles)}")
            root = pickles[0].removesuffix("data.pkl")
            byte_order = b"little"
            storages: dict[str, bytes] = {}
            for member in members:
                inner = member.filename.removeprefix(root)
                if inner == "byteorder":
                    byte_order = _unpack(archive, member)
                elif inner.startswith("data/") and member.filename.startswith(root):
                    storages[inner.removeprefix("data/")] = _unpack(archive, member)
            pickle = _unpack(archive, archive.getinfo(pickles[0]))
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise UnknownFormatError(f"{name}: the zip archive is cut short or damaged; fetch the file again") from error
    if byte_order not in (b"little", b"big"):
        raise UnknownFormatError(f"{name}: the archive's byteorder must be little or big")
    return TorchArchive(pickle, byte_order, storages)


_END, _END_BYTES = b"PK\x05\x06", 22
_END_64, _LOCATOR_64, _LOCATOR_64_BYTES = b"PK\x06\x06", b"PK\x06\x07", 20
_LARGEST_32 = 2**32 - 1


def _has_one_reading(data: bytes, members: list[zipfile.ZipInfo], directory: int) -> bool:
    """Whether torch's reader must find in a zip file what Python's finds.

    The readers differ where the end record and the directory's real place contradict each other (Python's shifts all
    offsets, torch's does not), in which letters of a name count as the same, and in what they call the root. So there
    must be one directory, right before the end, one root, and no gap before the first entry.

    Args:
        data: The whole file.
        members: Its entries as Python reads them.
        directory: Where it found the directory.
    """
    end = len(data) - _END_BYTES
    if end < 0 or data[end : end + 4] != _END:  # nothing may follow it, not even a comment
        return False
    size, offset = (int.from_bytes(data[end + at : end + at + 4], "little") for at in (12, 16))
    stop, locator = end, end - _LOCATOR_64_BYTES
    if locator >= 0 and data[locator : locator + 4] == _LOCATOR_64:
        stop = int.from_bytes(data[locator + 8 : locator + 16], "little")
        large = [int.from_bytes(data[stop + at : stop + at + 8], "little") for at in (40, 48)]
        if data[stop : stop + 4] != _END_64 or any(
            short not in (_LARGEST_32, long) for short, long in zip((size, offset), large, strict=True)
        ):
            return False
        size, offset = large
    names = [member.filename for member in members]
    return (
        offset == directory
        and offset + size == stop
        and min((member.header_offset for member in members), default=0) == 0
        and len({name.partition("/")[0] for name in names}) == 1
        and len({name.lower() for name in names}) == len(names)
    )


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """One entry, never more of it than it declares: the checksum tells whether that was all."""
    with archive.open(member) as stream:
        content = stream.read(member.file_size)
    if len(content) != member.file_size:
        raise EOFError
    return content


def _check_sizes(members: list[zipfile.ZipInfo], file_bytes: int, name: str) -> None:
    """Refuse what unpacks to far more than it weighs, before anything is unpacked."""
    if len(members) > MAX_MEMBERS:
        raise UnknownFormatError(f"{name}: refused, a zip archive of {len(members)} entries is no checkpoint")
    if len({member.filename for member in members}) != len(members):
        raise UnknownFormatError(f"{name}: refused, two entries of the zip archive have the same name")
    total = sum(member.file_size for member in members)
    if total > memory_allowance(file_bytes):
        raise UnknownFormatError(f"{name}: refused as a zip bomb, {file_bytes} bytes would unpack to {total}")
    end_of_previous = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise UnknownFormatError(
                f"{name}: refused, the zip archive is encrypted or packed in a way torch never uses"
            )
        if member.file_size > MAX_RATIO * max(member.compress_size, 1):
            raise UnknownFormatError(
                f"{name}: refused as a zip bomb, {member.compress_size} bytes in it would unpack to {member.file_size}"
            )
        if member.header_offset < end_of_previous:
            raise UnknownFormatError(f"{name}: refused as a zip bomb, its entries overlap")
        end_of_previous = member.header_offset + 30 + len(member.orig_filename) + member.compress_size
    if end_of_previous > file_bytes:
        raise UnknownFormatError(f"{name}: the zip archive is cut short; fetch the file again")


def memory_allowance(file_bytes: int) -> int:
    """Bytes that the content of a file may take in memory: twenty times the file, at least 64 MiB."""
    return max(64 * 2**20, 20 * file_bytes)
