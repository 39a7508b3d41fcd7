"""The kernels' source as functions of the processor: a C compiler, and a header that says what CUDA's words mean.

Threads run one after the other, blocks in descending order: a kernel that counted on another order, or on two threads
at a time, gives other bits here.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

from worker.device.kernels import SOURCE

SIGNATURES = {
    "gather": "PPPPPPPfuP",
    "scatter": "PPPPPPP",
    "encode_bf16": "PPUU",
    "encode_fp16": "PPUU",
    "decode_bf16": "PPUU",
    "decode_fp16": "PPUU",
}
"""P: a pointer, U and u: 64 and 32 bits without a sign, f: a float."""
C_TYPES = {"P": ctypes.c_void_p, "U": ctypes.c_uint64, "u": ctypes.c_uint32, "f": ctypes.c_float}
_WORDS = {"P": "void *", "U": "unsigned long long ", "u": "unsigned int ", "f": "float "}
HEADER = r"""
#include <string.h>
#define KERNEL static
#define INLINE static inline
typedef struct { unsigned int x, y, z; } place_t;
static place_t threadIdx, blockIdx, blockDim;
typedef struct { unsigned int x, y, z, w; } uint4;
typedef struct { unsigned short x, y, z, w; } ushort4;
static inline unsigned int __float_as_uint(float value) { unsigned int bits; memcpy(&bits, &value, 4); return bits; }
static inline float __uint_as_float(unsigned int bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline void atomicMin(unsigned long long *least, unsigned long long value) {
    if (value < *least) *least = value;
}
"""
OPTIONS = ("-x", "c", "-std=gnu11", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off", "-Wall",
           "-Werror", "-Wno-int-to-pointer-cast")  # fmt: skip


def _runner(name: str, letters: str) -> str:
    parameters = ", ".join(f"{_WORDS[letter]}a{at}" for at, letter in enumerate(letters))
    arguments = ", ".join(f"a{at}" for at in range(len(letters)))
    return f"""
void run_{name}(unsigned int blocks, unsigned int threads, {parameters}) {{
    blockDim.x = threads;
    for (unsigned int block = blocks; block-- > 0;)
        for (unsigned int thread = 0; thread < threads; thread++) {{
            blockIdx.x = block, threadIdx.x = thread;
            {name}({arguments});
        }}
}}
"""


@functools.cache
def library() -> ctypes.CDLL:
    text = HEADER + SOURCE + "".join(_runner(*one) for one in SIGNATURES.items())
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "kernels.c"), Path(folder, "kernels.so")
        source.write_text(text)
        ran = subprocess.run(["cc", *OPTIONS, "-o", made, source], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return ctypes.CDLL(str(made))


def run(name: str, blocks: int, threads: int, values: list[int | float]) -> None:
    """`values`: addresses and numbers, as SIGNATURES has them."""
    kinds = [C_TYPES[letter] for letter in SIGNATURES[name]]
    arguments = [kind(value) for kind, value in zip(kinds, values, strict=True)]
    getattr(library(), f"run_{name}")(ctypes.c_uint32(blocks), ctypes.c_uint32(threads), *arguments)
