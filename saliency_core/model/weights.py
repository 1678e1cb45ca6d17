"""Reads weight files of all supported containers without running any code that they hold."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile, ZipFile

import torch

from saliency_core.errors import InvalidRequestError
from saliency_core.state_dicts.module_versions import VersionedState, versions_of

_MAX_INDEX_BYTES = 64 * 2**20  # the index of a model of 100,000 tensors takes about 10 MiB
_MAX_SHARDS = 10_000
_INDEX_SUFFIX = ".index.json"
_READABLE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", _INDEX_SUFFIX)


@contextmanager
def tensors_only() -> Iterator[None]:
    """Makes ``torch.load`` read only tensors inside the ``with``, whatever its arguments.

    torchvision and torch.export request every object in a file, which would run the code that it holds.
    """
    variables = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def read_checkpoint(path: Path) -> object:
    """Returns the content of a ``.safetensors`` file, a ``torch.save`` file, or the shards of an ``….index.json``, on
    the CPU.

    The container is recognised by the file's first bytes, not by its name. Raises InvalidRequestError, with a
    description of the file, if it cannot be read, or only by running code.
    """
    if path.is_dir():
        names = sorted(item.name for item in path.iterdir() if item.name.endswith(_READABLE_SUFFIXES))[:5]
        raise InvalidRequestError(
            f"weights {str(path)!r} is a folder: name a file in it ({', '.join(names) or 'it has no weight file'})."
        )
    if not path.is_file():
        raise InvalidRequestError(f"weights {str(path)!r}: no such file. Give a state dict or a .safetensors file.")
    if path.name.endswith(_INDEX_SUFFIX):
        return _read_shards(path)
    return _choose_reader(path)(path)


def _choose_reader(path: Path) -> Callable[[Path], object]:
    """Returns the function that reads the file, by its first bytes. Raises InvalidRequestError, with what the file is,
    if it does not hold weights."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InvalidRequestError(f"weights {str(path)!r} cannot be read ({error}).") from error
    if not head:
        raise InvalidRequestError(f"{path} is empty (0 bytes): download or save the weights again.")
    if head.startswith(b"version https://git-lfs"):
        raise InvalidRequestError(
            f"{path} is a Git LFS pointer, not the weights themselves: fetch them with `git lfs pull`."
        )
    if re.match(rb"\s*<(!doctype|html|\?xml|head)", head, re.IGNORECASE):
        raise InvalidRequestError(
            f"{path} is a web page, not weights: the download returned an error or a login page. Download it again."
        )
    if head[:4] == b"PK\x03\x04":
        _refuse_other_archives(path)
        return _read_torch
    if head.startswith(b"\x80"):  # a pickle, the format of torch.save until version 1.6
        return _read_torch
    if head[8:9] == b"{":
        if int.from_bytes(head[:8], "little") > size - 8:
            raise InvalidRequestError(
                f"{path} is cut off: its header alone is longer than its {size} bytes. Download or save it again."
            )
        return _read_safetensors
    return _read_safetensors if path.suffix == ".safetensors" else _read_torch


def _refuse_other_archives(path: Path) -> None:
    try:
        with ZipFile(path) as archive:
            members = [name.partition("/")[2] for name in archive.namelist()]
            # torch does not verify checksums; it can be configured to write none, which leaves them at 0
            damaged = archive.testzip() if any(item.CRC for item in archive.infolist()) else None
    except BadZipFile as error:
        raise InvalidRequestError(
            f"{path} is cut off or damaged: it begins like a file of torch.save, but has no valid end ({error}). "
            "Download or save it again."
        ) from error
    if damaged is not None:
        raise InvalidRequestError(
            f"{path} is damaged: the checksum of {damaged!r} in it is wrong. Download or save it again."
        )
    if "archive_format" in members or any(name.startswith("code/") for name in members):
        raise InvalidRequestError(
            f"{path} holds a whole model, graph and weights: give it as `model` file:{path}, without `weights`."
        )
    if "data.pkl" not in members:
        raise InvalidRequestError(
            f"{path} is a zip archive, but was not written by torch.save: give the state dict that is in it."
        )


def _read_safetensors(path: Path) -> object:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors raises an exception without a more specific base class
        raise InvalidRequestError(
            f"{path} cannot be read as a .safetensors file ({type(error).__name__}: {error})."
        ) from error


def _read_torch(path: Path) -> object:
    try:
        with path.open("rb") as file:  # given a path, torch chooses a reader by its name
            return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        refused = _refused_object(str(error))
        if refused is None:
            raise InvalidRequestError(
                f"{path} was written neither by torch.save nor by safetensors, or is damaged: give a state dict."
            ) from error
        raise InvalidRequestError(
            f"{path} holds more than tensors ({refused}), and loading it could run code, so it is not loaded. Save "
            "only the state dict: torch.save(model.state_dict(), path), or use .safetensors."
        ) from error
    except EOFError as error:
        raise InvalidRequestError(f"{path} is cut off ({error}): download or save it again.") from error
    except Exception as error:  # zip and torch raise exceptions of their own
        if ".tar format" in str(error):  # torch's own message advises against weights_only
            raise InvalidRequestError(
                f"{path} is a tar archive, which is not read: give the state dict that is in it."
            ) from error
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InvalidRequestError(
            f"{path} cannot be read as weights ({reason}): it may be cut off or damaged."
        ) from error


def _refused_object(message: str) -> str | None:
    """Returns the class or function that ``weights_only`` refused; None if the message is not about one."""
    imported = re.search(r"(?:unsupported GLOBAL|Unsupported global: GLOBAL) ([\w.]+)", message)
    if imported:
        return imported[1]
    called = re.search(
        r"(Can only (?:create|build)|Trying to call)[^\n]*?(?:got|reduce for|function) (<?[^\n>]+>?)", message
    )
    if called:
        return called[2]
    return "objects" if "Only persistent_load" in message else None


def _read_shards(path: Path) -> dict[str, object]:
    """Returns the tensors of all shards that an index (``model.safetensors.index.json``) names, which lie beside it."""
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise InvalidRequestError(
            f"{path} is larger than {_MAX_INDEX_BYTES} bytes, so it is not read as an index of shards."
        )
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        shards = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidRequestError(
            f"{path} is not an index of shards (JSON with 'weight_map', which names the file of each tensor)."
        ) from error
    files = sorted(set(shards.values()))
    if len(files) > _MAX_SHARDS:
        raise InvalidRequestError(f"{path} names {len(files)} shards, and at most {_MAX_SHARDS} are read.")
    for file in files:
        if not file or file in (".", "..") or re.search(r"[/\\\0:]", file) or file.endswith(_INDEX_SUFFIX):
            raise InvalidRequestError(
                f"{path} names the shard {file!r}, which does not lie beside it, so it is not read."
            )
    absent = [file for file in files if not (path.parent / file).is_file()]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise InvalidRequestError(
            f"{path} names shards that are not beside it: {', '.join(absent[:3])}{more}. Download all of them."
        )
    tensors: dict[str, object] = {}
    versions: dict[str, dict[str, object]] = {}
    for file in files:
        shard = _choose_reader(path.parent / file)(path.parent / file)
        names = [name for name in shards if shards[name] == file]
        if not isinstance(shard, dict) or not all(name in shard for name in names):
            raise InvalidRequestError(
                f"{path.parent / file} lacks tensors that {path.name} lists for it: download both again."
            )
        tensors |= {name: shard[name] for name in names}
        versions |= versions_of(shard)
    return VersionedState(tensors, versions)
