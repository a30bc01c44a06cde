"""Pickles of arrays, lists and text, read as data: nothing in them is ever run.

A pickle is a program for a stack machine. It is followed here for what builds dictionaries, lists,
numbers and text, in every protocol; where it calls something, the call is written down (`Call`)
instead of made, and only those calls are known that NumPy's arrays are written with. Time and
memory are in proportion to the bytes of the pickle.
"""

import dataclasses
import io
import math
import operator
import pickletools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class PickleError(ValueError):
    """What a pickle holds is not what is read here; it is not repeated in the message, as it may be
    without end.
    """


class _Name(NamedTuple):
    name: str


@dataclasses.dataclass(slots=True, repr=False, eq=False)
class Call:
    """A call that a pickle makes: the name of what it calls, its arguments, the state that it sets
    on the result.
    """

    name: str
    arguments: tuple
    state: Any = ()


_CORES = ("numpy.core", "numpy._core")  # before and from NumPy 2
_NAMES = {
    **{f"{core}.multiarray {name}": name for core in _CORES for name in ("_reconstruct", "scalar")},
    **{f"{core}.numeric _frombuffer": "_frombuffer" for core in _CORES},  # protocol 5
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    # Bytes of Python 3 in protocols before 3, whose empty ones are the next two.
    "_codecs encode": "encode",
    "__builtin__ bytes": "bytes",
    "builtins bytes": "bytes",
}
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
# How many values an opcode takes from the stack; None: all down to the last mark.
_TAKES = {
    "EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None, "EMPTY_LIST": 0,
    "LIST": None, "EMPTY_DICT": 0, "DICT": None, "APPEND": 1, "APPENDS": None, "SETITEM": 2,
    "SETITEMS": None, "STACK_GLOBAL": 2, "REDUCE": 2, "BUILD": 1,
}  # fmt: skip
_LONGEST_KEY = 100


def _find(name: str) -> _Name:
    if name not in _NAMES:
        written = ascii(name[:100].replace(" ", "."))[1:-1]
        raise PickleError(f"it calls {written}; nothing but an array is read")
    return _Name(_NAMES[name])


def _key(value: Any) -> bytes:
    text = value.arguments[0] if type(value) is Call and value.arguments else value
    if type(text) not in (str, bytes) or len(text) > _LONGEST_KEY:
        raise PickleError("it has a key that is no short text")
    return value.encode() if type(value) is str else to_bytes(value)


def _pairs(items: list[Any]) -> Iterator[tuple[bytes, Any]]:
    return zip(map(_key, items[::2]), items[1::2], strict=True)


def _build(name: str, items: list[Any], stack: list[Any]) -> None:
    """Changes the stack as an opcode does that has taken these items from it."""
    match name:
        case "APPEND" | "APPENDS":
            list.extend(stack[-1], items)
        case "SETITEM" | "SETITEMS":
            dict.update(stack[-1], _pairs(items))
        case "BUILD":
            (stack[-1].state,) = items
        case "STACK_GLOBAL":
            stack.append(_find(" ".join(items)))
        case "REDUCE":
            function, arguments = items
            if type(function) is not _Name or type(arguments) is not tuple:
                raise PickleError("it calls what is no function")
            stack.append(Call(function.name, arguments))
        case "EMPTY_DICT" | "DICT":
            stack.append(dict(_pairs(items)))
        case "EMPTY_LIST" | "LIST":
            stack.append(items)
        case _:
            stack.append(tuple(items))


def read_pickle(content: bytes) -> Any:
    """What a pickle holds, with a `Call` for every call; keys of dictionaries are bytes, also those
    that were text.

    Raises:
      PickleError: for a call or an opcode that arrays, lists and text are not made of, and for more
        of them than an array has of a few kilobytes an entry.
      Exception: of any other kind where the pickle is damaged.
    """
    file = io.BytesIO(content)
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    # An image of 3,072 bytes with its label and name takes 30 of 61.
    for _ in range(1000 + len(content) // 50):
        opcode = pickletools.code2op.get(file.read(1).decode("latin-1"))
        name = opcode.name if opcode else "an unknown opcode, or ends early"
        if name == "STRING":  # of Python 2, as it writes them in programs
            line = pickletools.read_stringnl(file, decode=False)
            argument = line.decode("unicode_escape")
        elif opcode and opcode.arg:
            argument = opcode.arg.reader(file)
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "GLOBAL":
                stack.append(_find(argument))
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "STOP":
                return stack.pop()
            case _ if name in _VALUES:
                stack.append(_VALUES[name])
            case _ if name in _LITERALS:
                stack.append(argument)
            case _ if name in _TAKES:
                count = _TAKES[name]
                start = marks.pop() if count is None else len(stack) - count
                if start < 0:
                    raise PickleError("it takes more than there is")
                items = stack[start:]
                del stack[start:]
                _build(name, items, stack)
            case _:
                raise PickleError(f"it uses {name}; nothing but an array and lists is read")
    raise PickleError("it is too complex for a batch")


def to_bytes(value: Any) -> bytes | bytearray:
    """The bytes that a pickle holds, directly, as text of Python 2, or as a call."""
    match value:
        case bytes() | bytearray():
            return value
        case (str() as text) | Call("encode", (str() as text, "latin1")):
            return text.encode("latin-1")
        case Call("bytes", ()):
            return b""
    raise PickleError("it has something else where bytes should be")


def _to_dtype(value: Any) -> np.dtype:
    """A type of integers of one to eight bytes, in either byte order."""
    match value:
        case Call("dtype", (kind, *_), (_, order, *_)):
            name = (to_bytes(order) + to_bytes(kind)).decode("latin-1")
            if not re.fullmatch("[<>|=][iu][1248]", name):
                raise PickleError("its array is not one of integers")
            return np.dtype(name)
    raise PickleError("it has something else where the type of an array should be")


def to_array(value: Any) -> np.ndarray:
    """The array of integers, or one integer of NumPy, that a pickle holds; raises `PickleError`
    where it is none.
    """
    match value:
        case Call("_reconstruct", _, (_, shape, dtype, fortran, content)):
            order = b"F" if fortran is True else b"C"
        case Call("_frombuffer", (content, dtype, shape, order)):
            order = to_bytes(order)
        case Call("scalar", (dtype, content)):
            shape, order = (), b"C"
        case _:
            raise PickleError("it is no array, and no number of one")
    dtype, content = _to_dtype(dtype), to_bytes(content)
    if (
        type(shape) is not tuple
        or len(shape) > 4
        or any(type(n) is not int or n < 0 for n in shape)
    ):
        raise PickleError("its shape is none")
    if order not in (b"C", b"F") or math.prod(shape) * dtype.itemsize != len(content):
        raise PickleError(f"its shape is not that of {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order=order.decode())


def to_integer(value: Any) -> int:
    """The integer that a pickle holds, of Python or NumPy."""
    return value if type(value) is int else operator.index(to_array(value))
