"""What a file of weights would build, found without building it.

A pickle is a small program for a machine with a stack. Here that machine works on descriptions: a
global stays a name, a tensor the place of its bytes, and what is neither is refused. Nothing is
imported, looked up or called, so nothing in a file can run; and what it takes to build the content
is known before any of it is built.
"""

import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch

from utils.errors import BadInput

# How many instructions a pickle may have: each takes up to 180 bytes of memory, and a file of
# one-byte instructions would otherwise grow a hundredfold. A tensor takes about 40 of them.
FREE_OBJECTS = 400_000
BYTES_PER_OBJECT = 128
DEEPEST = 64

_STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16,
        "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
        "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
        "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }.items()
}  # fmt: skip
_DTYPES = {str(dtype) for dtype in _STORAGES.values()}
# Instructions that push their argument, a constant, or a new container.
_ARGUMENTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_MAPPINGS = ("collections.OrderedDict", "collections.Counter")
_VIEWS: tuple[list[None], ...] = (
    [],
    [None],
)  # a sixth part, None, in files that torch before 1.6 wrote
_KNOWN = {
    *_STORAGES, *_DTYPES, *_MAPPINGS, "argparse.Namespace", "torch.Size", "torch.device",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """The bytes behind a tensor: the key of its record, and the device it was saved on."""

    key: str
    dtype: torch.dtype
    numel: int
    device: str


@dataclass(frozen=True)
class Stored:
    """A tensor that has not been read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Global:
    name: str


class _Ordered(dict[Any, Any]):
    """A dict that may be given attributes, as `state_dict()` gives itself `_metadata`."""


class _Namespace(dict[Any, Any]):
    pass


def refuse(reason: str) -> BadInput:
    """The error for content that is not plain data."""
    return BadInput(f"refused, {reason}")


def scan(data: IO[bytes], file_bytes: int) -> Any:
    """The value of the one pickle that starts at the position of `data`, tensors as `Stored`.

    Namespaces and the kinds of dict come back as dicts, tuples stay. Leaves `data` behind the
    pickle. BadInput on any instruction or name that a state dict has no use for.
    """
    machine = _Machine(FREE_OBJECTS + file_bytes // BYTES_PER_OBJECT)
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in the names of globals
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name != "STOP":
                    machine.run(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, UnicodeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"damaged, its list of contents cannot be read ({error})") from error
    if len(machine.stack) != 1 or machine.marks:
        raise BadInput("damaged, its list of contents does not end where it should")
    return machine.stack[0]


class _Machine:
    """A pickle machine whose values are descriptions; one call of `run` an instruction."""

    def __init__(self, budget: int) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.budget = budget

    def run(self, name: str, argument: Any) -> None:
        self.budget -= 1
        if self.budget < 0:
            raise refuse("it builds more objects than a file of its size holds")
        match name:
            case "PROTO":
                if argument != 2:
                    raise refuse(f"pickle protocol {argument} (state dicts are saved with 2)")
            case "GLOBAL":
                self.stack.append(_global(argument))
            case _ if name in _ARGUMENTS:
                self.stack.append(argument)
            case _ if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            case _ if name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(self.stack)
                self.stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                items = tuple(self.stack[-count:])
                if len(items) != count:
                    raise IndexError("too few values for a tuple")
                self.stack[-count:] = [items]
            case "TUPLE":
                items = tuple(self._unmark())
                self.stack.append(items)
            case "APPEND":
                self._extend([self.stack.pop()])
            case "APPENDS":
                self._extend(self._unmark())
            case "SETITEM":
                value = self.stack.pop()
                self._update([self.stack.pop(), value])
            case "SETITEMS":
                self._update(self._unmark())
            case "BINPERSID":
                self.stack.append(_storage(self.stack.pop()))
            case "NEWOBJ" | "REDUCE":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(_build(function, arguments))
            case "BUILD":
                state = self.stack.pop()
                _set_state(self.stack[-1], state)
            case _:
                raise refuse(f"its pickle holds the instruction {name}, which no state dict needs")

    def _unmark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise refuse("it appends to something that is no list")
        self.stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, _Ordered) or len(items) % 2:
            raise refuse("it sets items of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | None):
                raise refuse(f"a key is a {type(key).__name__}")
            target[key] = value


def _global(argument: str) -> _Global:
    module, _, attribute = argument.partition(" ")
    name = f"{module}.{attribute}"
    if name not in _KNOWN:
        raise refuse(
            f"it names {name:.80}: only tensors and plain values are opened, never code "
            "(save `model.state_dict()`, not the module)"
        )
    return _Global(name)


def _storage(pid: Any) -> Storage:
    """A persistent id: ("storage", type, key, device, elements), and None in files before 1.6."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise refuse("it refers to something that is no storage")
    _, kind, key, device, numel, *view = pid
    dtype = _STORAGES.get(kind.name) if isinstance(kind, _Global) else None
    if (
        dtype is None
        or not isinstance(key, str)
        or not isinstance(device, str)
        or view not in _VIEWS
    ):
        raise refuse("it refers to a storage in an unknown way")
    return Storage(key, dtype, _count(numel), device)


def _build(function: Any, arguments: Any) -> Any:
    name = function.name if isinstance(function, _Global) else ""
    match name, arguments:
        case "collections.OrderedDict", ():
            return _Ordered()
        case "collections.OrderedDict", ([*pairs],):
            return _Ordered(pairs)
        case "collections.Counter", ({**items},):
            return dict(items)
        case "argparse.Namespace", ():
            return _Namespace()
        case "torch.Size", ([*sizes] | (*sizes,),):
            return [_count(size) for size in sizes]
        case "torch.device", (str() as kind,):
            return kind
        case "torch.device", (str() as kind, int() as index):
            return f"{kind}:{index}"
        case "torch._utils._rebuild_tensor", (Storage() as storage, offset, size, stride):
            return _stored(storage, offset, size, stride)
        case "torch._utils._rebuild_tensor_v2", (
            Storage() as storage,
            offset,
            size,
            stride,
            bool(),
            _Ordered() as hooks,
        ) if not hooks:
            return _stored(storage, offset, size, stride)
        case "torch._utils._rebuild_parameter", (Stored() as data, bool(), _Ordered() as hooks):
            if not hooks:
                return data
    raise refuse(f"it calls {name or 'a value'} in a way that no state dict does")


def _stored(storage: Storage, offset: Any, size: Any, stride: Any) -> Stored:
    shape = tuple(_count(item) for item in size)
    strides = tuple(_count(item) for item in stride)
    tensor = Stored(storage, _count(offset), shape, strides)
    last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if tensor.numel and (tensor.offset + last >= storage.numel or tensor.numel > storage.numel):
        raise refuse(
            f"a tensor of shape {list(shape)} reaches outside its {storage.numel} elements"
        )
    return tensor


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, _Namespace) and type(state) is dict:
        target.update(state)
    elif not (isinstance(target, _Ordered) and type(state) is dict and set(state) == {"_metadata"}):
        raise refuse("it sets attributes of something that has none")


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise refuse(f"{value!r:.40} stands where a size should")
    return value


def plain(value: Any, file_bytes: int, build: Callable[[Stored], Any]) -> Any:
    """A scanned value as dicts and lists (tuples too), each `Stored` replaced by `build` of it.

    BadInput when it is nested too deeply or in itself, or shares its tensors so often that copies
    of them would not fit twice the size of the file.
    """
    budget = [FREE_OBJECTS + file_bytes // BYTES_PER_OBJECT, 2 * file_bytes]

    def convert(value: Any, depth: int) -> Any:
        budget[0] -= 1
        if depth > DEEPEST or budget[0] < 0:
            raise refuse("its content is nested in itself, or too deeply")
        match value:
            case Stored():
                budget[1] -= value.numel * value.storage.dtype.itemsize
                if budget[1] < 0:
                    raise refuse("its tensors share one another's bytes too often")
                return build(value)
            case dict():
                return {key: convert(item, depth + 1) for key, item in value.items()}
            case list() | tuple():
                return [convert(item, depth + 1) for item in value]
            case None | bool() | int() | float() | str():
                return value
            case _Global() if value.name in _DTYPES:
                return value.name
        raise refuse("a class stands where a value should")

    return convert(value, 0)
