"""Finds the columns of a table that hold images, by their Arrow types, and reads an image from a cell.

An encoded image may be a value of any binary type or a list of uint8. It may be nested in structs, or in a list (view)
with one element, and it may be dictionary-encoded or of an extension type. In a struct {bytes, path} of Hugging Face,
null or empty bytes mean that the image is the file at `path`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from jobs.inputs.label_values import printable
from jobs.inputs.rejected import RejectedImage

MAX_DEPTH = 32  # of nested structs and lists; deeper ones are not searched
LONGEST_TEXT = 128 << 10  # bytes; more than any label or URI may have, so that a text cut off here is still too long
Steps = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImagePath:
    """Replaces the bytes of an image that is a file of its own; `path` is the text in the table."""

    path: str


@dataclass(frozen=True, slots=True)
class Oversized:
    """Replaces an image of more bytes than the limit."""

    size: int


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type under extension types and dictionaries."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether values are text, or all null."""
    kind = storage_type(kind)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(text or pa.types.is_null(kind))


def image_places(schema: pa.Schema) -> dict[str, Steps]:
    """Maps a name to each place with encoded images: the column and the fields inside it, as `image`, `bytes`.

    A column with one place is named by itself, others are named `column.field`. Lists of uint8 may hold other data, so
    they count only if no column has a binary type.
    """
    return _places(schema, lists=False) or _places(schema, lists=True)


def places_by_member(schema: pa.Schema) -> dict[str, Steps]:
    """All places by their name in a manifest, such as `image.bytes`."""
    every = [*_places(schema, lists=True).values(), *_places(schema, lists=False).values()]
    return {".".join(steps): steps for steps in every}


def image_in(
    cell: pa.Scalar | None, steps: Steps, *, max_bytes: int
) -> bytes | RejectedImage | ImagePath | Oversized | None:
    """Returns the image in a column's cell; `steps` are the fields of its structs."""
    while cell is not None and cell.is_valid:
        if isinstance(cell, pa.ExtensionScalar | pa.DictionaryScalar):
            cell = cell.value
        elif isinstance(cell, pa.StructScalar):
            inner = cell[steps[0]]
            if len(steps) == 1 and _is_blank(inner) and (place := _image_path(cell)):
                return place
            cell, steps = inner, steps[1:]
        elif not isinstance(cell, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
            buffer = cell.as_buffer()
            return Oversized(buffer.size) if buffer.size > max_bytes else bytes(buffer)
        elif pa.types.is_uint8(cell.values.type):
            if len(cell.values) > max_bytes:
                return Oversized(len(cell.values))
            return bytes(cell.values.fill_null(0).to_numpy(zero_copy_only=False))
        elif len(cell.values) > 1:
            return RejectedImage(
                f"the row holds {len(cell.values)} images, but one row is one image: give each its own row"
            )
        else:
            cell = cell.values[0] if len(cell.values) else None
    return None


def _places(schema: pa.Schema, *, lists: bool) -> dict[str, Steps]:
    places = {}
    for column in schema:
        inside = list(_places_inside(column.type, (column.name,), lists))
        for steps in inside:
            places[column.name if len(inside) == 1 else ".".join(steps)] = steps
    return places


def _steps(schema: pa.Schema, *, lists: bool) -> Iterator[Steps]:
    for column in schema:
        yield from _places_inside(column.type, (column.name,), lists)


def _places_inside(kind: pa.DataType, steps: Steps, lists: bool, depth: int = 0) -> Iterator[Steps]:
    if isinstance(kind, pa.FixedShapeTensorType) or depth > MAX_DEPTH:  # pixels, not an encoded image
        return
    kind = storage_type(kind)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        if index >= 0 and (_is_binary(kind.field(index).type) or _has_only_null_bytes(kind)):
            if not lists:
                yield (*steps, "bytes")
            return
        for field in kind:
            yield from _places_inside(field.type, (*steps, field.name), lists, depth + 1)
    elif _is_list(kind):
        if pa.types.is_uint8(kind.value_type):
            if lists:
                yield steps
        else:
            yield from _places_inside(kind.value_type, steps, lists, depth + 1)
    elif _is_binary(kind) and not lists:
        yield steps


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def is_ambiguous(schema: pa.Schema, member: str) -> bool:
    """Whether a name in a manifest is ambiguous: several places have it, or several columns that of its column."""
    every = [*_steps(schema, lists=True), *_steps(schema, lists=False)]
    matches = [steps for steps in every if ".".join(steps) == member]
    return len(matches) > 1 or any(schema.names.count(steps[0]) > 1 for steps in matches)


def map_columns(schema: pa.Schema) -> list[pa.Field]:
    """The columns with bytes in a map. They are not read, because the key of the image is unknown."""
    return [column for column in schema if _has_map(column.type)]


def _has_map(kind: pa.DataType, depth: int = 0) -> bool:
    kind = storage_type(kind)
    if depth > MAX_DEPTH:
        return False
    if pa.types.is_map(kind):
        return any(True for lists in (False, True) for _ in _places_inside(kind.item_type, (), lists))
    inner = [field.type for field in kind] if pa.types.is_struct(kind) else [kind.value_type] if _is_list(kind) else []
    return any(_has_map(kind, depth + 1) for kind in inner)


def _has_only_null_bytes(kind: pa.StructType) -> bool:
    """Whether all bytes of a struct {bytes, path} are null, so that their type is null."""
    path = kind.get_field_index("path")
    return (
        path >= 0
        and pa.types.is_null(kind.field(kind.get_field_index("bytes")).type)
        and is_text(kind.field(path).type)
    )


def _is_binary(kind: pa.DataType) -> bool:
    kind = storage_type(kind)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    ) and not pa.types.is_decimal(kind)


def _is_blank(cell: pa.Scalar) -> bool:
    """Whether a cell has no bytes: null, or of length 0."""
    while isinstance(cell, pa.ExtensionScalar | pa.DictionaryScalar) and cell.is_valid:
        cell = cell.value
    return not cell.is_valid or (isinstance(cell, pa.BinaryScalar) and cell.as_buffer().size == 0)


def _image_path(cell: pa.StructScalar) -> ImagePath | None:
    if cell.type.get_field_index("bytes") < 0 or cell.type.get_field_index("path") < 0:
        return None
    path = cell["path"]
    text = text_of(path)
    return ImagePath(text) if text else None


def text_of(cell: pa.Scalar) -> str | None:
    r"""The text of a cell, or its beginning; bytes in it that are not UTF-8 are written `\xff`."""
    while isinstance(cell, pa.ExtensionScalar | pa.DictionaryScalar) and cell.is_valid:
        cell = cell.value
    if not cell.is_valid or not hasattr(cell, "as_buffer"):
        return None
    buffer = cell.as_buffer()
    if buffer.size > LONGEST_TEXT:
        buffer = buffer.slice(0, LONGEST_TEXT)
    return printable(buffer.to_pybytes().decode("utf-8", "surrogateescape"))
