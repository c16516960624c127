"""What a pickle would do, found by following its opcodes on made-up values: nothing is imported, called or built.

A pickle is a program for a small stack machine. :func:`follow_pickle` runs that program with every risky instruction
replaced by a note of what it asked for: which globals, called with what, which tensors over which storages. That is
more than a list of names: it tells ``bytearray`` as a type from ``bytearray(10**11)`` as a way to exhaust memory, and a
tensor that lies inside its storage from one that does not.

The list of permitted globals is shorter than the one ``torch.load(weights_only=True)`` has, and each permitted call has
conditions on its arguments. Whatever is not understood is refused.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

MAX_PICKLE_BYTES = 64 * 2**20
"""Real ones are below 1 MiB; those that carry a poisoned data set's indices reach a few MiB."""

MAX_DIMENSIONS = 64
"""Of a tensor or an array; the libraries' own limits."""

MAX_UNFOLDED = 5_000_000
"""Items of all tuples written out, each as often as it is made or fetched again: readers hash and print keys in full.
Sixty tuples of the one before, twice, would be 2^60."""

MAX_TUPLE_DEPTH = 1000
"""Tuples within tuples: to hash deeper ones takes more of the stack than there may be."""

MAX_OPCODES = 5_000_000
"""About ten seconds of following."""

MAX_NAME, MAX_NAMES = 1000, 1000
"""Characters of a global's name that are kept, and names that are: a name may be put together anew by every opcode."""

_DTYPES: dict[str, int] = {
    f"torch.{name}": getattr(torch, name).itemsize
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e5m2"),
    )
}
"""Data type -> bytes an element."""

_STORAGES: dict[str, int] = {
    "torch.BoolStorage": 1,
    "torch.ByteStorage": 1,
    "torch.CharStorage": 1,
    "torch.ShortStorage": 2,
    "torch.IntStorage": 4,
    "torch.LongStorage": 8,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.FloatStorage": 4,
    "torch.DoubleStorage": 8,
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    "torch.storage.UntypedStorage": 1,
}
"""Storage class -> bytes an element."""

_OTHER_TENSORS: dict[str, str] = {
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch.serialization._get_layout": "sparse tensors",
    "torch._utils._rebuild_qtensor": "quantized tensors",
    "torch.QInt8Storage": "quantized tensors",
    "torch.QUInt8Storage": "quantized tensors",
    "torch.QInt32Storage": "quantized tensors",
    "torch.per_tensor_affine": "quantized tensors",
    "torch.per_channel_affine": "quantized tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta tensors, which have no values",
    "torch._utils._rebuild_wrapper_subclass": "tensor subclasses",
    "torch._utils._rebuild_device_tensor_from_numpy": "tensors of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "tensors of another device",
    "torch._tensor._rebuild_from_type_v2": "tensors with Python attributes",
    "torch.Tensor": "tensors with Python attributes",
    "torch.nn.parameter.Parameter": "parameters with Python attributes",
    "torch._utils._rebuild_parameter_with_state": "parameters with Python attributes",
}
"""Ways to build a tensor that run no foreign code, but that no audit needs -> what to call them."""

_NUMPY_BUILDERS = tuple(
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")
)
_NUMPY_DTYPE = re.compile(r"[<>|=]?([?biufcSU]\d{0,4})")

_TORCH_OPCODES = frozenset(
    {
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINSTRING", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "TUPLE", "TUPLE1"),
        *("TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET"),
        *("LONG_BINGET", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
    }
)
"""What torch's own restricted reader understands. Any other opcode is legal in a pickle but ends in a refusal."""


@dataclass(frozen=True)
class _Global:
    """A class or function that the pickle named."""

    name: str


@dataclass(frozen=True)
class _Made:
    """What a call or an instantiation would have returned.

    Args:
        by: Name of what is called.
        spelled: Of a dtype: its name.
    """

    by: str
    spelled: str = ""


@dataclass(frozen=True)
class _Storage:
    """A flat block of memory that a persistent id stands for."""

    elements: int
    element_bytes: int


class _Opaque:
    """A list, dict or set: what is in it does not matter here."""


class _MalformedError(Exception):
    """The opcodes are no valid pickle."""


class _Tuple(tuple[object, ...]):
    """A tuple that knows how large it is written out: hashing it takes that many steps, however often parts recur."""

    unfolded: int
    depth: int


@dataclass
class Listing:
    """What following a pickle found.

    Args:
        offenders: Globals it names that a checkpoint has no business with, as an ordered set; Python 2's module of
            built-ins is given its present spelling.
        called: Those offenders that it would call, not merely name or instantiate.
        storages: Storage key -> bytes that the pickle claims for it.
        tensor_bytes: Bytes of all tensors it rebuilds, were each laid out on its own.
        top: Offender of which the outermost object is an instance, if it is one.
        magic: The outermost value if it is an integer, as in the first pickles of a legacy file.
        problem: Why the file cannot be loaded although it names no offender.
        end: Offset of the first byte after the pickle; -1 where it is cut short or malformed.
    """

    offenders: dict[str, None] = field(default_factory=dict)
    called: dict[str, None] = field(default_factory=dict)
    storages: dict[str, int] = field(default_factory=dict)
    tensor_bytes: int = 0
    top: str | None = None
    magic: int | None = None
    problem: str | None = None
    end: int = -1


def follow_pickle(data: bytes, start: int = 0) -> Listing:
    """Follow one pickle to its end without doing anything it says.

    Args:
        data: Bytes that contain the pickle.
        start: Offset of its first byte.

    Returns:
        What it asks for. A pickle that breaks off is reported with all it had asked for until then: a normal reader
        would have done that much too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escape sequences in a crafted name
        return _Follower().follow(data, start)


def texts_in_list(data: bytes, start: int) -> list[str] | None:
    """The items of a pickle that is nothing but one list of texts, as the storage keys of a legacy file are.

    Args:
        data: Bytes that contain the pickle.
        start: Offset of its first byte.

    Returns:
        The texts, or None for any other pickle.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    names: list[str] = []
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("BINUNICODE", "SHORT_BINSTRING") and isinstance(argument, str):
                texts.append(argument)
            names.append(_LIST_OPCODES.get(opcode.name, "?"))
    except ValueError:
        return None
    return texts if re.fullmatch(r"p\[m?(\((tm?)+e|tm?a)*\.", "".join(names)) else None


_LIST_OPCODES = {
    **{"PROTO": "p", "EMPTY_LIST": "[", "MARK": "(", "APPENDS": "e", "APPEND": "a", "STOP": "."},
    **{"BINPUT": "m", "LONG_BINPUT": "m", "BINUNICODE": "t", "SHORT_BINSTRING": "t"},
}


class _Follower:
    """The stack machine. Nothing recursive is ever done to its values: shared tuples can unfold exponentially."""

    def __init__(self) -> None:
        self.listing = Listing()
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.unfolded = 0

    def follow(self, data: bytes, start: int) -> Listing:
        stream = io.BytesIO(data)
        stream.seek(start)
        try:
            for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
                at = position or 0
                if count >= MAX_OPCODES or at - start > MAX_PICKLE_BYTES:
                    self._object_to("its pickle is far larger than that of any classifier")
                    return self.listing
                if opcode.name not in _TORCH_OPCODES:
                    self._object_to(
                        f"its pickle uses {opcode.name}, which torch's weights-only reader does not know; "
                        "save it again with torch.save's default pickle protocol"
                    )
                if opcode.name in ("GLOBAL", "INST"):
                    # pickletools resolves backslashes in names, which no reader of pickles does.
                    module, name = data[at + 1 : stream.tell()].split(b"\n")[:2]
                    self._step(opcode.name, f"{module.decode()}.{name.decode()}")
                else:
                    self._step(opcode.name, argument)
        except (_MalformedError, ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
            self._object_to(f"its pickle is damaged or cut short ({type(error).__name__})")
            return self.listing
        self.listing.end = stream.tell()
        return self.listing

    # -- notes ---------------------------------------------------------------------------------------------------

    def _object_to(self, problem: str) -> None:
        if self.listing.problem is None:
            self.listing.problem = problem

    def _name_global(self, name: str) -> _Global:
        module, _, rest = name.partition(".")
        if module == "__builtin__":  # Python 2
            name = f"builtins.{rest}"
        if name in _OTHER_TENSORS:
            self._object_to(f"it holds {_OTHER_TENSORS[name]}; convert them to plain dense tensors and save again")
        elif name not in PERMITTED and len(self.listing.offenders) < MAX_NAMES:
            self.listing.offenders[name] = None
        return _Global(name)

    def _note_call(self, name: str) -> None:
        if len(self.listing.called) < MAX_NAMES:
            self.listing.called[name] = None

    # -- stack ---------------------------------------------------------------------------------------------------

    def _pop(self) -> object:
        if not self.stack:
            raise _MalformedError
        return self.stack.pop()

    def _pop_mark(self) -> list[object]:
        if not self.marks:
            raise _MalformedError
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def _step(self, name: str, argument: object) -> None:
        handler = _HANDLERS.get(name)
        if handler is not None:
            handler(self)
        elif name in _PUSHES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
            self.stack.append(_Opaque())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            assert isinstance(argument, int)
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            assert isinstance(argument, int)
            self._push_again(self.memo[argument])
        elif name == "GLOBAL":
            self.stack.append(self._name_global(str(argument)))
        elif name == "INST":
            self._pop_mark()
            self.stack.append(self._call_or_instantiate(self._name_global(str(argument))))
        elif name in ("EXT1", "EXT2", "EXT4"):
            self.stack.append(self._name_global(f"copyreg extension {argument}"))
        elif name == "PERSID":
            self._object_to("it refers to objects outside the file")
            self.stack.append(_Opaque())
        elif name not in ("PROTO", "FRAME", "READONLY_BUFFER"):
            raise _MalformedError

    # -- opcodes with several steps ------------------------------------------------------------------------------

    def _mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._pop()

    def _drop_top(self) -> None:
        if self.stack:
            self.stack.pop()
        else:  # Python's own reader takes POP on an empty stack for the removal of a mark
            self._pop_mark()

    def _duplicate(self) -> None:
        self._push_again(self.stack[-1])

    def _memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _tuple(self, length: int) -> None:
        items = [self._pop() for _ in range(length)]
        self._push_tuple(_Tuple(reversed(items)))

    def _tuple_from_mark(self) -> None:
        self._push_tuple(_Tuple(self._pop_mark()))

    def _push_tuple(self, made: _Tuple) -> None:
        size = 1 + sum(item.unfolded if isinstance(item, _Tuple) else 1 for item in made)
        made.depth = 1 + max((item.depth for item in made if isinstance(item, _Tuple)), default=0)
        made.unfolded = min(size, MAX_UNFOLDED)
        self._push_again(made)

    def _push_again(self, value: object) -> None:
        """A value that may stand in several places, and is read in each of them."""
        if isinstance(value, _Tuple):
            self.unfolded += value.unfolded
            if self.unfolded > MAX_UNFOLDED or value.depth > MAX_TUPLE_DEPTH:
                self._object_to("its pickle nests tuples so often that no computer could read them as a key")
        self.stack.append(value)

    def _collection_from_mark(self) -> None:
        self._pop_mark()
        self.stack.append(_Opaque())

    def _drop_mark(self) -> None:
        self._pop_mark()

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            spelled = "(a name computed by the pickle)"
        elif len(module) + len(name) > MAX_NAME:
            spelled = f"(a name of {len(module) + len(name):,} characters)"
        else:
            spelled = f"{module}.{name}"
        self.stack.append(self._name_global(spelled))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global):
            self._name_global("(the result of another call)")
            self._note_call("(the result of another call)")
            self.stack.append(_Opaque())
        elif function.name not in PERMITTED:
            if function.name not in _OTHER_TENSORS:
                self._note_call(function.name)
            self.stack.append(_Made(function.name))
        else:
            check = _CALLS.get(function.name)
            made = check(self, arguments) if check and isinstance(arguments, tuple) else None
            if made is None:
                self._object_to(f"it calls {function.name} in a way that no checkpoint does")
            self.stack.append(made or _Made(function.name))

    def _obj(self) -> None:
        items = self._pop_mark()
        self.stack.append(self._call_or_instantiate(items[0] if items else None))

    def _newobj(self) -> None:
        arguments, cls = self._pop(), self._pop()
        self.stack.append(self._instantiate(cls, arguments))

    def _newobj_ex(self) -> None:
        _, _, cls = self._pop(), self._pop(), self._pop()
        self.stack.append(self._instantiate(cls, None))

    def _call_or_instantiate(self, cls: object) -> object:
        """The old opcodes take a function as gladly as a class."""
        made = self._instantiate(cls, None)
        if made.by not in PERMITTED:
            self._note_call(made.by)
        return made

    def _instantiate(self, cls: object, arguments: object) -> _Made:
        name = cls.name if isinstance(cls, _Global) else self._name_global("(a class computed by the pickle)").name
        plain = name in _INSTANTIABLE and isinstance(arguments, tuple) and not arguments
        if name in PERMITTED and not plain:
            self._object_to(f"it instantiates {name} in a way that no checkpoint does")
        return _Made(name)

    def _build(self) -> None:
        state, target = self._pop(), self.stack[-1]
        made = target if isinstance(target, _Made) else _Made("")
        made_by = made.by
        if made_by in self.listing.offenders or made_by in _OTHER_TENSORS:
            return
        if made_by == "numpy.dtype":
            fine = _is_dtype_state(state, made.spelled)
        elif made_by == "numpy.array":
            fine = _is_array_state(state)
        else:
            fine = made_by in ("collections.OrderedDict", "argparse.Namespace")
        if not fine:
            self._object_to("it sets the state of an object in a way that no checkpoint does")

    def _persistent_id(self) -> None:
        """A reference to a storage: ('storage', class, key, location, elements[, view of it])."""
        reference = self._pop()
        storage = self._claim_storage(reference) if isinstance(reference, tuple) and len(reference) in (5, 6) else None
        if storage is None:
            self._object_to("it refers to something outside the pickle that is no tensor storage")
        self.stack.append(storage or _Opaque())

    def _claim_storage(self, reference: tuple[object, ...]) -> _Storage | None:
        kind, cls, key, _, elements = reference[:5]
        view = reference[5] if len(reference) == 6 else None
        element_bytes = _STORAGES.get(cls.name) if isinstance(cls, _Global) else None
        if element_bytes is None or not isinstance(kind, str) or kind != "storage":
            return None
        if not isinstance(key, str | int) or not isinstance(elements, int) or not _is_count(elements):
            return None
        claimed = elements * element_bytes
        if self.listing.storages.setdefault(str(key), claimed) != claimed:
            self._object_to("two of its tensors disagree on the size of the storage they share")
        if view is not None:
            if not (isinstance(view, tuple) and len(view) == 3):
                return None
            _, offset, length = view
            if not (isinstance(offset, int) and isinstance(length, int) and 0 <= offset <= offset + length <= elements):
                return None
            elements = length
        return _Storage(elements, element_bytes)

    def _stop(self) -> None:
        value = self._pop()
        if isinstance(value, _Made) and value.by in self.listing.offenders:
            self.listing.top = value.by
        elif isinstance(value, int):
            self.listing.magic = value

    # -- permitted calls: each returns what it makes, or None where its arguments are not the usual ones ----------

    def _rebuild_tensor(self, arguments: tuple[object, ...]) -> object | None:
        """(storage, offset, size, stride, ...): the tensor must lie inside its storage."""
        if len(arguments) < 4:
            return None
        storage, offset, size, stride = arguments[:4]
        if not (isinstance(storage, _Storage) and _is_count(offset) and _are_counts(size) and _are_counts(stride)):
            return None
        assert isinstance(offset, int)
        assert isinstance(size, tuple)
        assert isinstance(stride, tuple)
        element_bytes = storage.element_bytes
        if len(arguments) >= 7 and isinstance(arguments[6], _Global):  # _rebuild_tensor_v3 names the data type
            element_bytes = _DTYPES.get(arguments[6].name, 0)
        if len(size) != len(stride) or not element_bytes:
            return None
        elements = 1
        last = offset
        if math.prod(max(1, length) for length in size) >= 2**62:  # torch multiplies them, a zero among them or not
            return None
        for length, step in zip(size, stride, strict=True):
            elements *= length
            last += (length - 1) * step
        if elements and (last + 1) * element_bytes > storage.elements * storage.element_bytes:
            self._object_to("one of its tensors is larger than the storage it claims to lie in")
        self.listing.tensor_bytes += elements * element_bytes
        return _Made("tensor")

    def _rebuild_parameter(self, arguments: tuple[object, ...]) -> object | None:
        return arguments[0] if arguments and isinstance(arguments[0], _Made) and arguments[0].by == "tensor" else None

    def _encode(self, arguments: tuple[object, ...]) -> object | None:
        """Bytes as protocol 2 writes them: text in Latin-1. Other codecs can decompress, or take quadratic time."""
        if len(arguments) != 2 or not isinstance(arguments[0], str):
            return None
        return _Made("bytes") if arguments[1] in ("latin1", "latin-1", "ascii", "utf-8") else None

    def _numpy_dtype(self, arguments: tuple[object, ...]) -> object | None:
        spelled = arguments[0] if arguments else None
        if not (isinstance(spelled, str) and _NUMPY_DTYPE.fullmatch(spelled)):
            return None
        try:
            np.dtype(spelled)
        except TypeError:
            return None
        return _Made("numpy.dtype", spelled)

    def _numpy_array(self, arguments: tuple[object, ...]) -> object | None:
        """An empty array, to be filled by the state that follows: never one that has a size of its own."""
        if len(arguments) != 3:
            return None
        cls, shape, _ = arguments
        empty = isinstance(shape, tuple) and len(shape) == 1 and isinstance(shape[0], int) and shape[0] == 0
        return _Made("numpy.array") if empty and isinstance(cls, _Global) and cls.name == "numpy.ndarray" else None

    def _numpy_scalar(self, arguments: tuple[object, ...]) -> object | None:
        made = [argument.by if isinstance(argument, _Made) else type(argument).__name__ for argument in arguments]
        return _Made("number") if made in (["numpy.dtype", "bytes"], ["numpy.dtype", "str"]) else None

    def _plain(self, arguments: tuple[object, ...]) -> object | None:
        """A collection made of other values; none of these allocates more than it is given."""
        return _Made("collection") if len(arguments) <= 1 else None

    def _ordered_dict(self, arguments: tuple[object, ...]) -> object | None:
        return _Made("collections.OrderedDict") if len(arguments) <= 1 else None

    def _device(self, arguments: tuple[object, ...]) -> object | None:
        return _Made("device") if 1 <= len(arguments) <= 2 and isinstance(arguments[0], str) else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**48


def _are_counts(values: object) -> bool:
    # Their number first: one long tuple may be an argument of every opcode.
    return isinstance(values, tuple) and len(values) <= MAX_DIMENSIONS and all(_is_count(value) for value in values)


def _is_dtype_state(state: object, spelled: str) -> bool:
    """(version, byte order, subarray, names, fields, size, alignment, flags[, metadata]), as NumPy writes it.

    NumPy takes any size, alignment and flags that it is given, and then reads memory that is not there.
    """
    if not isinstance(state, tuple) or len(state) not in (8, 9):
        return False
    written = np.dtype(spelled).__reduce__()[2]
    assert isinstance(written, tuple)
    numbers = state[5:8]
    return (
        state[0] in (3, 4)
        and state[1] in ("<", ">", "|", "=")
        and all(part is None for part in (*state[2:5], *state[8:]))
        and all(type(number) is int for number in numbers)
        and numbers == written[5:8]
    )


def _is_array_state(state: object) -> bool:
    """(version, shape, dtype, is Fortran order, bytes), and not of a size that the bytes cannot have."""
    if not isinstance(state, tuple) or len(state) != 5:
        return False
    _, shape, dtype, _, raw = state
    if not (_are_counts(shape) and isinstance(dtype, _Made) and dtype.by == "numpy.dtype"):
        return False
    small = len(shape) <= MAX_DIMENSIONS and math.prod(shape) <= MAX_PICKLE_BYTES
    return small and (isinstance(raw, str | bytes) or (isinstance(raw, _Made) and raw.by == "bytes"))


_PUSHES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_HANDLERS: dict[str, Callable[[_Follower], None]] = {
    "MARK": _Follower._mark,
    "STOP": _Follower._stop,
    "POP": _Follower._drop_top,
    "POP_MARK": _Follower._drop_mark,
    "DUP": _Follower._duplicate,
    "MEMOIZE": _Follower._memoize,
    "TUPLE": _Follower._tuple_from_mark,
    "TUPLE1": lambda follower: follower._tuple(1),
    "TUPLE2": lambda follower: follower._tuple(2),
    "TUPLE3": lambda follower: follower._tuple(3),
    "LIST": _Follower._collection_from_mark,
    "DICT": _Follower._collection_from_mark,
    "FROZENSET": _Follower._collection_from_mark,
    "APPEND": lambda follower: follower._drop(1),
    "SETITEM": lambda follower: follower._drop(2),
    "APPENDS": _Follower._drop_mark,
    "SETITEMS": _Follower._drop_mark,
    "ADDITEMS": _Follower._drop_mark,
    "STACK_GLOBAL": _Follower._stack_global,
    "REDUCE": _Follower._reduce,
    "BUILD": _Follower._build,
    "OBJ": _Follower._obj,
    "NEWOBJ": _Follower._newobj,
    "NEWOBJ_EX": _Follower._newobj_ex,
    "BINPERSID": _Follower._persistent_id,
}

_CALLS: dict[str, Callable[[_Follower, tuple[object, ...]], object | None]] = {
    "collections.OrderedDict": _Follower._ordered_dict,
    "collections.Counter": _Follower._plain,
    "builtins.set": _Follower._plain,
    "torch.Size": _Follower._plain,
    "torch.device": _Follower._device,
    "torch._utils._rebuild_tensor": _Follower._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _Follower._rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _Follower._rebuild_tensor,
    "torch._utils._rebuild_parameter": _Follower._rebuild_parameter,
    "_codecs.encode": _Follower._encode,
    "numpy.dtype": _Follower._numpy_dtype,
    **{name: _Follower._numpy_array if "_reconstruct" in name else _Follower._numpy_scalar for name in _NUMPY_BUILDERS},
}
"""Permitted call -> what checks its arguments."""

_INSTANTIABLE = frozenset({"argparse.Namespace", "collections.OrderedDict"})

PERMITTED = frozenset({*_CALLS, *_STORAGES, *_DTYPES, *_INSTANTIABLE, "numpy.ndarray"})
"""Every global that a checkpoint may name."""
