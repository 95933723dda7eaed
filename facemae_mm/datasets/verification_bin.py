"""Verification sets as InsightFace publishes them: a pickle, read without running its code."""

import pickle
import pickletools
import reprlib
from pathlib import Path

import numpy as np

#: A larger `.bin` is refused before it is read; that of CFP-FP, 14,000 faces, has some 60 MB.
MAX_BYTES = 1 << 30


class VerificationBin:
    """Image pairs of a `.bin` (lfw, cfp_fp, agedb_30, …); a `FaceSource`.

    The file is the pickle of (encoded images, bools). Pair i is images 2i and 2i + 1. Keys are the
    images' numbers. Identities are unknown.

    Args:
        path: The `.bin` file.

    Attributes:
        same: (pairs,) bool, True where both images show one person.

    Raises:
        pickle.UnpicklingError: The pickle is damaged or asks for anything but images and bools.
        ValueError: It holds something else than a list of images and half as many bools, or is
            above 1 GiB.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._images, same = load_images_and_bools(self.path)
        self.same = np.array(same, bool)
        self.keys = [str(i) for i in range(len(self._images))]
        self.labels = np.full(len(self._images), -1, np.int64)
        self.identities = []

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> bytes:
        """Returns one encoded image."""
        return self._images[index]


def load_images_and_bools(path: str | Path) -> tuple[list[bytes], list[bool]]:
    """Reads a `.bin`; whatever its pickle asks for, no code runs, and time and memory stay in proportion to the file.

    Args:
        path: The file, of protocol 2 to 5. Files by Python 2 are read too: its strings become
            bytes, as do NumPy's arrays of uint8.

    Returns:
        The encoded images (2 · pairs,), and whether each pair shows one person (pairs,).

    Raises:
        pickle.UnpicklingError: Damaged, or asking for anything but lists, tuples, bytes, bools and
            uint8 arrays; what it asks for is named.
        ValueError: It holds something else than a list of images and half as many bools, or is
            above 1 GiB.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(
            f'{path} is {size:,} bytes; a verification set has at most {MAX_BYTES:,}, some 200,000 '
            'faces. Give the images as a folder, with a list of pairs.'
        )
    try:
        content = _interpret(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        known = isinstance(error, (pickle.UnpicklingError, ValueError))
        fault = str(error)[:200] if known else f'its opcodes do not fit together ({error!r})'
        raise pickle.UnpicklingError(
            f'{path} cannot be read as a verification set: {fault}. Download it from a source you '
            'trust, or make it anew with tools/make_verification_bin.py.'
        ) from None
    fault = _fault(content)
    if fault:
        raise ValueError(
            f'{path} is no verification set: {fault}. A .bin is the pickle of (list of '
            'encoded images, list of bools), two images to a bool. Download it again.'
        )
    images, same = content
    return [image.data if isinstance(image, _Array) else image for image in images], list(same)


def _fault(content: object) -> str | None:
    """What keeps a pickle's object from being images and bools."""
    if not (_is_list(content) and len(content) == 2 and all(map(_is_list, content))):
        return 'it does not hold two lists'
    images, same = content
    for i, image in enumerate(images):
        if not isinstance(image, (bytes, _Array)):
            return f'image {i} is {type(image).__name__}, not bytes'
    for i, value in enumerate(same):
        if not isinstance(value, bool):
            return f'entry {i} of the second list is {type(value).__name__}, not bool'
    if not same or len(images) != 2 * len(same):
        return f'{len(images)} images do not make {len(same)} pairs'
    return None


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


class _Array:
    """An array of encoded bytes; empty until its state comes."""

    __slots__ = ('data',)

    def __init__(self, data: bytes = b'') -> None:
        self.data = data


_UINT8 = object()  # stands for the dtype


def _dtype(name: object, *_: object) -> object:
    if name not in ('u1', b'u1'):
        raise pickle.UnpicklingError(f'an array has dtype {reprlib.repr(name)}, but encoded images are uint8')
    return _UINT8


def _filled_array(data: object, dtype: object, shape: object, _: object = None) -> _Array:
    if dtype is not _UINT8 or not isinstance(data, bytes):
        raise pickle.UnpicklingError('an array does not hold bytes (uint8)')
    if shape not in ((len(data),), (len(data), 1)):
        raise pickle.UnpicklingError(
            f'an array of shape {reprlib.repr(shape)} is no encoded image, which is (bytes,) or (bytes, 1)'
        )
    return _Array(data)


#: What a pickle may ask for by name, and what takes its place.
_ADMITTED = {
    'numpy.ndarray': None,  # named to _reconstruct, never called
    'numpy.dtype': _dtype,
    'numpy.core.multiarray._reconstruct': lambda *_: _Array(),
    'numpy._core.multiarray._reconstruct': lambda *_: _Array(),  # NumPy 2's name of it
    'numpy.core.numeric._frombuffer': _filled_array,  # from protocol 5 on
    'numpy._core.numeric._frombuffer': _filled_array,
}


def _admitted(module: object, name: object) -> object:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise pickle.UnpicklingError('it asks for something whose name is no text')
    asked = f'{module}.{name}'
    if asked not in _ADMITTED:
        raise pickle.UnpicklingError(
            f'it asks for {asked!r}, but only lists, tuples, bytes, bools and uint8 arrays are admitted'
        )
    return _ADMITTED[asked]


def _interpret(data: bytes) -> object:
    """The object of a pickle of lists, tuples, bytes, bools and uint8 arrays.

    An interpreter of the few opcodes that these need, in place of `pickle.load`: it imports nothing,
    sets no attributes and calls nothing but the functions above. Nor can a file make it allocate:
    the memo is a dict, `pickletools` takes no length on trust, and the number of opcodes is bounded
    (an array takes 22 opcodes and 60 bytes beside its image, so images of 300 bytes still pass).

    Raises:
        pickle.UnpicklingError: Any other opcode or name, by name.
        ValueError: A pickle that is cut off.
        IndexError, KeyError, TypeError, AttributeError: Opcodes that do not fit together.
    """
    most = 10_000 + len(data) // 16
    stack, marks, memo = [], [], {}

    def pop_to_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for number, (opcode, value, _) in enumerate(pickletools.genops(data)):
        if number == most:
            raise pickle.UnpicklingError(f'it has more than {most} opcodes, too many for {len(data)} bytes of images')
        match opcode.name:
            case 'MEMOIZE':
                memo[len(memo)] = stack[-1]
            case 'BINPUT' | 'LONG_BINPUT':
                memo[value] = stack[-1]
            case 'BINGET' | 'LONG_BINGET':
                stack.append(memo[value])
            case 'SHORT_BINBYTES' | 'BINBYTES' | 'BINBYTES8' | 'BININT' | 'BININT1' | 'BININT2' | 'LONG1':
                stack.append(value)
            case 'BYTEARRAY8':
                stack.append(bytes(value))
            case 'SHORT_BINSTRING' | 'BINSTRING':
                stack.append(value.encode('latin-1'))  # as pickletools decoded it
            case 'SHORT_BINUNICODE' | 'BINUNICODE':
                if len(value) > 100:
                    raise pickle.UnpicklingError(f'it holds a text of {len(value)} characters')
                stack.append(value)
            case 'NONE':
                stack.append(None)
            case 'NEWTRUE':
                stack.append(True)
            case 'NEWFALSE':
                stack.append(False)
            case 'EMPTY_LIST':
                stack.append([])
            case 'EMPTY_TUPLE':
                stack.append(())
            case 'MARK':
                marks.append(len(stack))
            case 'APPEND':
                item = stack.pop()
                stack[-1].append(item)  # which lists alone have
            case 'APPENDS':
                items = pop_to_mark()
                stack[-1].extend(items)
            case 'TUPLE':
                stack.append(tuple(pop_to_mark()))
            case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                length = int(opcode.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case 'GLOBAL':
                stack.append(_admitted(*value.split(' ', 1)))
            case 'STACK_GLOBAL':
                name = stack.pop()
                stack[-1] = _admitted(stack[-1], name)
            case 'REDUCE':
                arguments = stack.pop()
                if not (callable(stack[-1]) and isinstance(arguments, tuple) and len(arguments) <= 4):
                    raise pickle.UnpicklingError('it makes a call that no array needs')
                stack[-1] = stack[-1](*arguments)
            case 'BUILD':
                state = stack.pop()
                if isinstance(stack[-1], _Array):
                    _, shape, dtype, _, data_of_array = state
                    stack[-1].data = _filled_array(data_of_array, dtype, shape).data
                elif stack[-1] is not _UINT8:  # a dtype's state, byte order and the like, says nothing more
                    raise pickle.UnpicklingError('it sets the state of what is no array')
            case 'PROTO' | 'FRAME':
                pass
            case 'STOP':
                return stack.pop()
            case name:
                raise pickle.UnpicklingError(
                    f'it has the opcode {name}, but only lists, tuples, bytes, bools and uint8 arrays are admitted'
                )
