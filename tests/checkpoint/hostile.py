"""Files made to run code, to crash a reader, or fill its memory, in a few lines of bytes each."""

import io
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00%s%s\x89"
    b"ccollections\nOrderedDict\n)RtR"
)
SHAPE = b"K\x04\x85K\x01\x85"
KEY = b"X\x01\x00\x00\x00a"


def one(value: bytes) -> bytes:
    """The pickle of {"a": value}."""
    return b"\x80\x02}" + KEY + value + b"s."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85") -> bytes:
    return TENSOR % (shape, strides)


def torch_zip(
    pickled: bytes,
    method: int = zipfile.ZIP_STORED,
    storage: bytes = struct.pack("<4f", 1, 2, 3, 4),
    **records: bytes | tuple[str, bytes],
) -> bytes:
    """The zip that `torch.save` would have written around `pickled`, with one storage."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", b"little")
        archive.writestr("x/data/0", storage)
        archive.writestr("x/version", b"3\n")
        for name, data in records.items():
            place, content = data if isinstance(data, tuple) else (f"x/{name}", data)
            archive.writestr(place, content)
    return buffer.getvalue()


def calls(marker: Path) -> dict[str, bytes]:
    """Pickles that make `marker` when a pickle machine runs them: functions and their calls."""
    command = text(f"touch {marker}")
    python = text(f"open({str(marker)!r}, 'w')")
    path = text(str(marker))
    return {
        "os.system": b"cos\nsystem\n(" + command + b"tR",
        "posix.system": b"cposix\nsystem\n(" + command + b"tR",
        "nt.system": b"cnt\nsystem\n(" + command + b"tR",
        "subprocess.getoutput": b"csubprocess\ngetoutput\n(" + command + b"tR",
        "subprocess.Popen, NEWOBJ": b"csubprocess\nPopen\n((" + command + b"l\x85\x81",
        "builtins.eval": b"cbuiltins\neval\n(" + python + b"tR",
        "builtins.exec": b"cbuiltins\nexec\n(" + python + b"tR",
        "builtins.open": b"cbuiltins\nopen\n(" + path + text("w") + b"tR",
        "__builtin__.eval, of Python 2": b"c__builtin__\neval\n(" + python + b"tR",
        "builtins.getattr": b"cbuiltins\ngetattr\n(cos\nsystem\n" + text("__call__") + b"tR",
        "importlib.import_module": b"cimportlib\nimport_module\n(" + text("antigravity") + b"tR",
        "runpy.run_path": b"crunpy\nrun_path\n(" + path + b"tR",
        "shutil.copy": b"cshutil\ncopy\n(" + text("/etc/hostname") + path + b"tR",
        "pathlib.Path.touch": b"cpathlib\nPath.touch\n(cpathlib\nPath\n(" + path + b"tRtR",
        "ctypes.CDLL": b"cctypes\nCDLL\n(" + text("libc.so.6") + b"tR",
        "torch.load": b"ctorch\nload\n(" + path + b"tR",
        "torch.hub": b"ctorch.hub\nload\n(" + path + text("x") + b"tR",
        "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n(" + path + b"tR",
        "numpy scalar": b"cnumpy.core.multiarray\nscalar\n(" + path + b"tR",
        "functools.partial": b"cfunctools\npartial\n(cos\nsystem\n" + command + b"tR",
        "operator.methodcaller": b"coperator\nmethodcaller\n(" + text("touch") + b"tR",
        "a class of torch.nn": b"ctorch.nn.modules.linear\nLinear\n)\x81}b",
        "INST": b"(" + command + b"ios\nsystem\n",
        "OBJ": b"(cos\nsystem\n" + command + b"o",
        "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93(" + command + b"tR",
        "NEWOBJ_EX": b"cos\nsystem\n(" + command + b"t}\x92",
        "EXT1": b"\x82\x01)R",
        "os.system under a namespace": b"cargparse\nNamespace\n)\x81}"
        + text("x")
        + b"cos\nsystem\n("
        + command
        + b"tRsb",
        "os.system among a tensor's hooks": tensor()[:-3] + b"cos\nsystem\n(" + command + b"tRtR",
    }


def abuses() -> dict[str, bytes]:
    """Allowed names used in ways that no state dict does."""
    hooks = b"ccollections\nOrderedDict\n)R"
    return {
        "a state set on a tensor": tensor() + b"}" + text("x") + b"K\x01sb",
        "a state set on a dict": b"}}" + text("items") + b"K\x01sb",
        "methods of a dict replaced": hooks + b"}" + text("items") + b"K\x01sb",
        "items set on a tensor": tensor() + KEY + b"K\x01s",
        "items appended to a dict": b"}K\x01a",
        "a namespace with a list for a state": b"cargparse\nNamespace\n)\x81]b",
        "a class as a value": b"ctorch\nFloatStorage\n",
        "a class as a key": b"}ctorch\nFloatStorage\nK\x01s",
        "a storage as a value": STORAGE,
        "a storage id of another form": b"K\x05Q",
        "a tensor of no storage": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00"
        + SHAPE + b"\x89" + hooks + b"tR",
        "a tensor beyond its storage": tensor(b"K\x05\x85"),
        "a tensor of negative size": tensor(b"J\xff\xff\xff\xff\x85"),
        "a tensor of negative stride": tensor(b"K\x04\x85", b"J\xff\xff\xff\xff\x85"),
        "shape and strides of other lengths": tensor(b"K\x02K\x02\x86", b"K\x01\x85"),
        "a sparse tensor": b"ctorch._utils\n_rebuild_sparse_tensor\n(K\x00)tR",
        "a quantised tensor": b"ctorch._utils\n_rebuild_qtensor\n(K\x00)tR",
        "a meta tensor": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n()tR",
        "a tensor subclass": b"ctorch._utils\n_rebuild_wrapper_subclass\n()tR",
        "a list in itself": b"]q\x00h\x00a",
        "a missing memo": b"h\x07",
        "an empty stack": b"00000",
        "a mark too few": b"t",
        "a frame": b"\x95\x00\x00\x00\x00\x00\x00\x00\x00N",
    }  # fmt: skip


def bombs() -> dict[str, bytes]:
    """Small files that would become large, or keep a reader busy."""
    long = b"\x8a\x08" + struct.pack("<q", 10**15)
    laughs = b"(]"
    for _ in range(40):  # each list holds the one before ten times
        laughs += b"q\x01](" + b"h\x01" * 10 + b"e"
    large = tensor().replace(b"K\x04tQ", b"J\x00\x00\x04\x00tQ")  # a storage of 1 MB
    large = large.replace(b"K\x04\x85", b"J\x00\x00\x04\x00\x85")
    keys = b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(10**6))
    shared = b"".join(text(str(n)) + b"h\x00" for n in range(5000))
    return {
        "bytearray of 2 GB": torch_zip(one(b"cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R")),
        "stride 0, 10^15 elements": torch_zip(one(tensor(long + b"\x85", b"K\x00\x85"))),
        "stride 0, 100 elements": torch_zip(one(tensor(b"Kd\x85", b"K\x00\x85"))),
        "a storage that is not there": torch_zip(one(tensor().replace(b"K\x04tQ", long + b"tQ"))),
        "nested 10^4 deep": torch_zip(one(b"]" * 10_000 + b"a" * 9_999)),
        "10^6 empty lists": torch_zip(one(b"(" + b"]" * 1_000_000 + b"l")),
        "10^6 empty dicts in a list": torch_zip(one(b"](" + b"}" * 1_000_000 + b"e")),
        "10^6 keys": torch_zip(b"\x80\x02}(" + keys + b"u."),
        "a tensor of 1 MB 5000 times": torch_zip(
            b"\x80\x02}(" + text("a") + large + b"q\x00" + shared + b"u.", storage=bytes(1 << 20)
        ),
        "a list of lists of lists": torch_zip(one(laughs + b"t")),
        "a string of 2 GB that ends": torch_zip(one(b"X\xff\xff\xff\x7fabc")),
        "an integer of a million digits": torch_zip(one(b"I" + b"9" * 10**6 + b"\n")),
        "a list of contents of 64 MB": torch_zip(one(b"]" * (64 << 20))),
        "a deflated record": torch_zip(one(tensor()), zipfile.ZIP_DEFLATED, big=bytes(1 << 24)),
        "a bzip2 record": torch_zip(one(tensor()), zipfile.ZIP_BZIP2, big=bytes(1 << 20)),
        "100000 records": many_records(100_000),
        "100000 records in a table said to be short": many_records(100_000, hide=True),
        "a safetensors header of 2 GB": struct.pack("<Q", 1 << 31) + b"{" + bytes(100),
        "a safetensors header of 60 MB": struct.pack("<Q", 60 << 20) + b'{"a":' * (12 << 20),
        "a safetensors tensor beyond the file": safetensors([1 << 40]),
        "a safetensors tensor of another size": safetensors([5]),
    }  # fmt: skip


def many_records(count: int, hide: bool = False) -> bytes:
    """A zip of empty records; `hide` leaves the size of their table to its 64-bit end alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", one(tensor()))
        for number in range(count):
            archive.writestr(f"x/{number}", b"")
    data = buffer.getvalue()
    if hide and b"PK\x06\x06" in data[-98:]:
        data = data[:-10] + bytes(4) + data[-6:]
    return data


def safetensors(shape: list[int]) -> bytes:
    header = b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,16]}}' % str(shape).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


def containers(marker: Path) -> dict[str, bytes]:
    """Code, or confusion, in what is around the pickle."""
    payload = one(b"cos\nsystem\n(" + text(f"touch {marker}") + b"tR")
    good = torch_zip(one(tensor()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the duplicate name
        twice = torch_zip(one(tensor()), again=("x/data.pkl", payload))
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    legacy = magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}."
    scripted = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), scripted)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            archive.addfile(entry, io.BytesIO(payload))
    return {
        "a bare pickle": payload,
        "a bare pickle of protocol 5": pickle.dumps({"a": 1}, protocol=5),
        "protocol 4 in a zip": torch_zip(pickle.dumps({"a": 1}, protocol=4)),
        "a legacy file": legacy + payload + b"\x80\x02].",
        "code in a legacy file's keys": legacy + one(b"K\x01") + payload,
        "code in a legacy file's first pickle": magic + payload,
        "a legacy storage larger than the file": legacy
        + one(tensor().replace(b"K\x04tQ", b"\x8a\x08" + struct.pack("<q", 1 << 40) + b"NtQ"))
        + b"\x80\x02]X\x01\x00\x00\x000a." + struct.pack("<q", 1 << 40),
        "a legacy tar": tar.getvalue(),
        "TorchScript": scripted.getvalue(),
        "a pickle named constants": torch_zip(one(tensor()), **{"constants.pkl": payload}),
        "code beside the pickle": torch_zip(one(tensor()), **{"code/x.py": b"import os"}),
        "a second list of contents": twice,
        "two folders with a list each": torch_zip(one(tensor()), other=("y/data.pkl", payload)),
        "a zip in front of a zip": torch_zip(payload) + good,
        "a zip behind a comment": good[:-2] + struct.pack("<H", len(good)) + good,
        "a zip of something else": zipped({"readme.txt": b"hello"}),
        "a big-endian file": zipped({"x/data.pkl": one(tensor()), "x/byteorder": b"big",
                                     "x/data/0": bytes(16)}),
        "a shell script": b"#!/bin/sh\ntouch " + str(marker).encode(),
        "a numpy file": b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}",
    }  # fmt: skip


def zipped(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def all_files(marker: Path) -> dict[str, Callable[[], bytes]]:
    """Name -> a function that makes the file; `marker` appears when one is run."""
    made = {f"call: {name}": torch_zip(one(data)) for name, data in calls(marker).items()}
    made |= {f"abuse: {name}": torch_zip(one(data)) for name, data in abuses().items()}
    made |= {f"container: {name}": data for name, data in containers(marker).items()}
    made |= {f"bomb: {name}": data for name, data in bombs().items()}
    return {name: lambda data=data: data for name, data in made.items()}
