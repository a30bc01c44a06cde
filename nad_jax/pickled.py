"""Pickles of arrays, lists and text, read as data: nothing in them is ever run.

A pickle is a program for a stack machine. It is followed here for what builds dictionaries, lists,
numbers and text, in every protocol; where it calls something, the call is written down (`Call`)
instead of made, and only those calls are known that NumPy's arrays are written with. Time and
memory are in proportion to the bytes of the pickle.
"""

import io
import math
import pickletools
from typing import Any, NamedTuple

import numpy as np


class PickleError(ValueError):
    """What a pickle holds is not what is read here; it is not repeated in the message, as it may be
    without end.
    """


class _Name(NamedTuple):
    name: str


class Call:
    """A call that a pickle makes: the name of what it calls, its arguments, the state that it sets
    on the result.
    """

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple) -> None:
        self.name, self.arguments, self.state = name, arguments, ()


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
    "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8",
}  # fmt: skip
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OTHERS = {
    "PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "EMPTY_DICT",
    "DICT", "EMPTY_LIST",
    "LIST", "TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MEMOIZE", "PUT", "BINPUT",
    "LONG_BINPUT", "GET",
    "BINGET", "LONG_BINGET",
}  # fmt: skip
_KNOWN = {*_VALUES, *_LITERALS, *_TUPLES, *_OTHERS}
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_LONGEST_KEY = 100


def _read_argument(opcode: Any, file: io.BytesIO) -> Any:
    if opcode.arg is None:
        return None
    if opcode.name == "STRING":  # bytes of Python 2, as it writes them in programs
        return (
            pickletools.read_stringnl(file, decode=False).decode("unicode_escape").encode("latin-1")
        )
    value = opcode.arg.reader(file)
    return value.encode("latin-1") if opcode.name in ("BINSTRING", "SHORT_BINSTRING") else value


def _call(function: Any, arguments: Any) -> Call:
    if type(function) is not _Name or type(arguments) is not tuple:
        raise PickleError("it calls what is no function")
    return Call(function.name, arguments)


def _find(name: str) -> _Name:
    if name not in _NAMES:
        written = ascii(name[:100].replace(" ", "."))[1:-1]
        raise PickleError(f"it calls {written}; nothing but an array is read")
    return _Name(_NAMES[name])


def _key(value: Any) -> bytes:
    text = value.arguments[0] if type(value) is Call and value.arguments else value
    if type(text) not in (str, bytes) or len(text) > _LONGEST_KEY:
        raise PickleError("it has a key that is no short text")
    return text.encode() if text is value and type(text) is str else to_bytes(value)


def _fill(table: Any, items: list) -> None:
    if type(table) is not dict or len(items) % 2:
        raise PickleError("it sets items of what is no dictionary")
    table.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))


def _pop_mark(stack: list[Any], marks: list[int]) -> list[Any]:
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return items


def _build(name: str, argument: Any, stack: list[Any], marks: list[int]) -> None:
    """Changes the stack as the opcodes of containers and calls do."""
    match name:
        case "MARK":
            marks.append(len(stack))
        case "EMPTY_DICT":
            stack.append({})
        case "DICT":
            items = _pop_mark(stack, marks)
            stack.append({})
            _fill(stack[-1], items)
        case "SETITEM":
            value = stack.pop()
            key = stack.pop()
            _fill(stack[-1], [key, value])
        case "SETITEMS":
            items = _pop_mark(stack, marks)
            _fill(stack[-1], items)
        case "EMPTY_LIST":
            stack.append([])
        case "LIST":
            stack.append(_pop_mark(stack, marks))
        case "TUPLE":
            stack.append(tuple(_pop_mark(stack, marks)))
        case "APPEND":
            value = stack.pop()
            list.append(stack[-1], value)
        case "APPENDS":
            items = _pop_mark(stack, marks)
            list.extend(stack[-1], items)
        case "GLOBAL":
            stack.append(_find(argument))
        case "STACK_GLOBAL":
            text = stack.pop()
            stack.append(_find(f"{stack.pop()} {text}"))
        case "REDUCE":
            arguments = stack.pop()
            stack.append(_call(stack.pop(), arguments))
        case "BUILD":
            state = stack.pop()
            stack[-1].state = state


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
        opcode = _OPCODES.get(file.read(1))
        if opcode is None or opcode.name not in _KNOWN:
            found = "an unknown opcode, or ends early" if opcode is None else opcode.name
            raise PickleError(f"it uses {found}; nothing but an array and lists is read")
        name, argument = opcode.name, _read_argument(opcode, file)
        if name in _LITERALS:
            stack.append(argument)
        elif name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _TUPLES:
            start = len(stack) - _TUPLES[name]
            if start < 0:
                raise PickleError("it takes more than there is")
            stack[start:] = [tuple(stack[start:])]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name.endswith("PUT"):
            memo[argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        elif name == "STOP":
            return stack.pop()
        else:
            _build(name, argument, stack, marks)
    raise PickleError("it is too complex for a batch")


def to_bytes(value: Any) -> bytes | bytearray:
    """The bytes that a pickle holds, directly or as a call."""
    if type(value) in (bytes, bytearray):
        return value
    if type(value) is Call and value.name == "bytes" and value.arguments == ():
        return b""
    if type(value) is Call and value.name == "encode" and len(value.arguments) == 2:
        text, encoding = value.arguments
        if type(text) is type(encoding) is str and encoding == "latin1":
            return text.encode("latin-1")
    raise PickleError("it has something else where bytes should be")


def _to_text(value: Any) -> str:
    text = value if type(value) is str else to_bytes(value).decode("latin-1")
    return text[:3]


def _to_dtype(value: Any) -> np.dtype:
    """A type of integers of one to eight bytes, in either byte order."""
    if type(value) is not Call or value.name != "dtype" or len(value.state) < 2:
        raise PickleError("it has something else where the type of an array should be")
    kind, order = _to_text(value.arguments[0]), _to_text(value.state[1])
    if kind not in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8") or order not in (
        "<",
        ">",
        "|",
        "=",
    ):
        raise PickleError("its array is not one of integers")
    return np.dtype(order + kind)


def to_array(value: Any) -> np.ndarray:
    """The array of integers that a pickle holds; raises `PickleError` where it is none."""
    if type(value) is Call and value.name == "_reconstruct" and len(value.state) == 5:
        _, shape, dtype, fortran, content = value.state
        order = "F" if fortran is True else "C"
    elif type(value) is Call and value.name == "_frombuffer" and len(value.arguments) == 4:
        content, dtype, shape, order = value.arguments
        order = _to_text(order)
    else:
        raise PickleError("it is no array")
    dtype, content = _to_dtype(dtype), to_bytes(content)
    if (
        type(shape) is not tuple
        or len(shape) > 4
        or any(type(n) is not int or n < 0 for n in shape)
    ):
        raise PickleError("its shape is none")
    if order not in ("C", "F") or math.prod(shape) * dtype.itemsize != len(content):
        raise PickleError(f"its shape is not that of {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def to_integer(value: Any) -> int:
    """The integer that a pickle holds, of Python or NumPy."""
    if type(value) is int:
        return value
    if type(value) is Call and value.name == "scalar" and len(value.arguments) == 2:
        dtype, content = _to_dtype(value.arguments[0]), to_bytes(value.arguments[1])
        if len(content) == dtype.itemsize:
            return int(np.frombuffer(content, dtype)[0])
    raise PickleError(f"{type(value).__name__} is no integer")
