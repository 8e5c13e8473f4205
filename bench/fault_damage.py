"""Damage to files: to their bytes, to what a safetensors file says of its tensors, to JSON, and to pickles."""

import io
import json
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

Damage = Callable[[Random, bytes], bytes]
HUGE = (2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2.5, 1e308, -1e308, float("nan"), float("inf"), *HUGE),
    *("", "later", "2", "\ud800", "\0", "x" * 10**5, [], {}, [[]], [None], {"a": 1}, [0.5, 0.5], [1, 0], [1] * 1000),
)
SAME_SIZE = {"F32": ("I32", "U32"), "F16": ("BF16", "I16", "U16"), "U8": ("BOOL", "I8", "F8_E4M3", "F8_E5M2"),
             "F64": ("I64", "U64"), "I64": ("F64", "U64")}  # fmt: skip


def truncated(rng: Random, file: bytes) -> bytes:
    """Cut a file."""
    return file[: rng.randrange(len(file))]


def flipped(rng: Random, file: bytes, within: int = 0) -> bytes:
    """Flip a few bits, perhaps within the first bytes."""
    changed = bytearray(file)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(min(within or len(file), len(file)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flipped_header(rng: Random, file: bytes) -> bytes:
    """Flip a few bits of a safetensors header."""
    return flipped(rng, file, 8 + int.from_bytes(file[:8], "little"))


def overwritten(rng: Random, file: bytes) -> bytes:
    """Overwrite a part with zeros or with noise."""
    start, length = rng.randrange(len(file)), rng.choice((4, 64, 1024))
    filling = bytes(length) if rng.random() < 0.5 else rng.randbytes(length)
    return file[:start] + filling + file[start + length :]


def split(file: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a safetensors file."""
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def joined(header: dict[str, Any], data: bytes) -> bytes:
    """Return a safetensors file of a header and data."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def other_length(rng: Random, file: bytes) -> bytes:
    """Tell another length of the header."""
    length = int.from_bytes(file[:8], "little")
    told = rng.choice((0, 1, length - 1, length + 1, len(file), 10**8, 2**63, 2**64 - 1, rng.getrandbits(40)))
    return told.to_bytes(8, "little") + file[8:]


def other_entry(rng: Random, file: bytes) -> bytes:
    """Tell other offsets, another shape or type of a tensor, or something else of it."""
    header, data = split(file)
    names = [name for name in header if name != "__metadata__"]
    entry, other = header[rng.choice(names)], header[rng.choice(names)]
    start, end = entry["data_offsets"]
    far = rng.choice(HUGE)
    offsets = ([-8, end], [start, far], [far, far], [end, start], other["data_offsets"], [start], [0.5, end], "x", None)
    shapes = ([2**32, 2**32], [far], [-1], [0], [*entry["shape"], 1], entry["shape"][::-1], [[1]], "x", None, [1] * 9)
    types = (*SAME_SIZE.get(entry["dtype"], ()), "F4", "F8_E4M3", "C64", "X", 3, None)
    key, values = rng.choice((("data_offsets", offsets), ("shape", shapes), ("dtype", types)))
    entry[key] = rng.choice(values)
    return joined(header, data)


def other_type(rng: Random, file: bytes) -> bytes:
    """Tell another type of as many bytes of a tensor, as which its numbers are read."""
    header, data = split(file)
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    entry["dtype"] = rng.choice(SAME_SIZE[entry["dtype"]])
    return joined(header, data)


def other_tensors(rng: Random, file: bytes) -> bytes:
    """Leave out a tensor, rename, reshape, empty or add one, or set a number that is not finite."""
    tensors, (header, _) = load(file), split(file)
    key = rng.choice(list(tensors))
    value = tensors.pop(key)
    number = rng.choice((torch.nan, torch.inf, -torch.inf, 3e38))
    spoilt = value.clone()
    if value.is_floating_point() and value.numel():
        spoilt.view(-1)[rng.randrange(value.numel())] = number
    for name, changed in rng.choice(
        (
            {},
            {rng.choice(("x", "snapshot.1.x", "snapshot.-1.x", "state.x", f"{key}.x")): value},
            {key: value.reshape(-1)[:0]},
            {key: value[None]},
            {key: value.reshape(-1)},
            {key: value.repeat(2, *[1] * (value.ndim - 1)) if value.ndim else value},
            {key: value, f"snapshot.{rng.choice(('0', '01', '9' * 20, '٣', '2.5'))}.{key}": value},
            {key: spoilt},
            {key: value.double()},
            {key: value.to(torch.int8)},
            {key: value.to(torch.float8_e4m3fn)},
            {key: value.to(torch.complex64)},
        )
    ).items():
        tensors[name] = changed.contiguous().clone()
    return save(tensors, header.get("__metadata__"))


def replace_leaf(rng: Random, data: Any) -> Any:
    """Replace a value somewhere within JSON values by an odd one, leave it out, or add one."""
    if not isinstance(data, dict | list) or not data or rng.random() < 0.1:
        return rng.choice(ODD)
    changed: Any = data.copy()
    key: Any = rng.choice(list(data)) if isinstance(data, dict) else rng.randrange(len(data))
    if rng.random() < 0.1:
        del changed[key]
    elif rng.random() < 0.1 and isinstance(data, dict):
        changed[rng.choice(("later", "noises", "source", "tensors", "\ud800"))] = rng.choice(ODD)
    else:
        changed[key] = replace_leaf(rng, data[key])
    return changed


def other_json(rng: Random, file: bytes) -> bytes:
    """Replace a value of a JSON file, nest it deeply or make it large."""
    if rng.random() < 0.1:
        return b"[" * 10**5 if rng.random() < 0.5 else json.dumps({"x": "x" * 10**7}).encode()
    return json.dumps(replace_leaf(rng, json.loads(file))).encode()


def other_info(rng: Random, file: bytes) -> bytes:
    """Replace a value of how a file says that it was made, or of its version; nest it deeply or make it large."""
    header, data = split(file)
    told = header["__metadata__"]
    if rng.random() < 0.15:
        told[rng.choice(("format", "format_version"))] = rng.choice(
            ("", "0", "1", "3", "-1", "²", "9" * 99, "x", "2.0")
        )
    else:
        told["info"] = other_json(rng, told["info"].encode()).decode()
    return joined(header, data)


def rezipped(file: bytes, change: Callable[[str, bytes], bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive with the parts changed."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(made, "w", packing) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return made.getvalue()


def flipped_pickle(rng: Random, file: bytes) -> bytes:
    """Flip a few bits of the pickle in an archive of PyTorch's."""
    return rezipped(file, lambda name, part: flipped(rng, part) if name.endswith("data.pkl") else part)


def packed(rng: Random, file: bytes) -> bytes:
    """Compress an archive of PyTorch's, in which a part has grown."""
    grown = bytes(10 ** rng.randrange(3, 8))
    return rezipped(file, lambda name, part: grown if name.endswith("data/0") else part, zipfile.ZIP_DEFLATED)


def other_objects(rng: Random, file: bytes) -> bytes:
    """Put something else than a plain tensor among the weights."""
    weights = torch.load(io.BytesIO(file), weights_only=True)
    key = rng.choice(list(weights))
    value = weights[key].float()
    quantised = torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)
    odd = (value.int(), value.bool(), value.to_sparse(), quantised, value.to(torch.complex64), value.view(-1)[0].item(),
           "x", None, [value], {"x": value}, value.new_zeros(1).expand(2**34), value.to("meta"), value[:0],
           torch.nn.Parameter(value), value.to(torch.float8_e5m2), value * torch.nan, torch.Size([3]))  # fmt: skip
    weights[rng.choice((key, key, key, 3, None, (1,), "x", "features.x"))] = rng.choice(odd)
    changed = rng.choice((weights, weights, weights, {"state_dict": weights}, [weights], {"unet": weights, "step": 3}))
    made = io.BytesIO()
    torch.save(changed, made, _use_new_zipfile_serialization=rng.random() < 0.7)
    return made.getvalue()


BYTES: dict[str, Damage] = {"truncated": truncated, "bits flipped": flipped, "a part overwritten": overwritten}
SAFETENSORS: dict[str, Damage] = {
    **BYTES,
    "bits of the header flipped": flipped_header,
    "another length of the header": other_length,
    "other offsets, shapes or types": other_entry,
    "numbers read as another type": other_type,
    "tensors missing, added, reshaped or not finite": other_tensors,
}
OURS: dict[str, Damage] = {**SAFETENSORS, "other metadata": other_info}
PICKLE: dict[str, Damage] = {
    **BYTES,
    "bits of the pickle flipped": flipped_pickle,
    "compressed and grown": packed,
    "other objects than weights": other_objects,
}
JSON: dict[str, Damage] = {**BYTES, "other values": other_json}
