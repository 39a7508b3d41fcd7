"""The kernels that run on a GPU, as CUDA C.

Owns their source, and the sizes that it and its callers must agree on. Invariants: a kernel writes the bits that
`paramserver.wire.codecs` and `Layout.flatten` would: codecs are whole-number arithmetic on the floats' bits, so no
option of a compiler changes them, and all that `gather` computes is one conversion and one multiplication. No kernel
shares memory between threads or waits for another thread, so that threads may run in any order, also one after the
other: a C compiler makes the same source a function for tests. Must not know: CuPy, streams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paramserver.wire.codecs import Codec

THREADS = 256
"""Of a block of threads."""
LANES = 4
"""Elements that a thread of a codec works on: 16 bytes are read, or written, at once."""
PIECE = 4096
"""Elements of one tensor that a block of threads of `gather` and `scatter` works on."""
KINDS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.float64): 2}
"""What tensors may be made of, as the kernels know it."""
NOTHING = 2**64 - 1
"""No element was beyond the limit."""
LIMITS = {Codec.FP32: 0x7F800000, Codec.BF16: 0x7F7F8000, Codec.FP16: 0x477FF000}
"""The bits of the least magnitude that is not finite when it is encoded."""
NAMES = ("gather", "scatter", "encode_bf16", "encode_fp16", "decode_bf16", "decode_fp16")

SOURCE = r"""
#ifndef KERNEL
#define KERNEL extern "C" __global__
#define INLINE __device__ __forceinline__
#endif

typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

#define PIECE 4096ull
#define TWO_TO_MINUS_24 5.9604644775390625e-8f

/* To nearest, ties to the even one; a NaN in one form. */
INLINE u16 bf16_of(u32 bits) {
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0;
    return (u16)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

INLINE u16 fp16_of(u32 bits) {
    u32 magnitude = bits & 0x7FFFFFFFu;
    u32 sign = (bits >> 16) & 0x8000u;
    if (magnitude > 0x7F800000u) return 0x7E00;
    if (magnitude >= 0x477FF000u) return (u16)(sign | 0x7C00u);     /* 65520 and more */
    if (magnitude >= 0x38800000u)                                   /* 2^-14 and more: a normal half */
        return (u16)(sign | ((magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13));
    if (magnitude < 0x33000000u) return (u16)sign;                  /* below 2^-25 */
    u32 shift = 126u - (magnitude >> 23);                           /* 14 to 24 */
    u32 significand = (magnitude & 0x7FFFFFu) | 0x800000u;
    u32 kept = significand >> shift;
    u32 lost = significand & ((1u << shift) - 1u), half = 1u << (shift - 1u);
    if (lost > half || (lost == half && (kept & 1u))) kept++;
    return (u16)(sign | kept);
}

INLINE u32 float_of_bf16(u16 bits) { return (u32)bits << 16; }

INLINE u32 float_of_fp16(u16 bits) {
    u32 sign = (u32)(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, significand = bits & 0x3FFu;
    if (exponent == 31u) return sign | 0x7F800000u | (significand << 13);
    if (exponent) return sign | ((exponent + 112u) << 23) | (significand << 13);
    return sign | __float_as_uint((float)significand * TWO_TO_MINUS_24);     /* exact */
}

/* One block of threads a piece: tensor piece_tensor[p] from its element piece_start[p] on, to `flat` at the tensor's
   place. first: the least place in `flat` whose magnitude is `limit` (as bits) or more. */
KERNEL void gather(const u64 *addresses, const int *kinds, const u64 *offsets, const u64 *sizes,
                   const int *piece_tensor, const u64 *piece_start, float *flat, float factor, u32 limit, u64 *first) {
    int tensor = piece_tensor[blockIdx.x];
    u64 start = piece_start[blockIdx.x], end = start + PIECE;
    u64 offset = offsets[tensor], address = addresses[tensor];
    int kind = kinds[tensor];
    if (end > sizes[tensor]) end = sizes[tensor];
    for (u64 i = start + threadIdx.x; i < end; i += blockDim.x) {
        float value;
        if (kind == 0) value = ((const float *)address)[i];
        else if (kind == 1) value = __uint_as_float(float_of_fp16(((const u16 *)address)[i]));
        else value = (float)((const double *)address)[i];
        if (factor != 1.0f) value *= factor;
        flat[offset + i] = value;
        if ((__float_as_uint(value) & 0x7FFFFFFFu) >= limit) atomicMin(first, offset + i);
    }
}

/* The way back. */
KERNEL void scatter(const u64 *addresses, const int *kinds, const u64 *offsets, const u64 *sizes,
                    const int *piece_tensor, const u64 *piece_start, const float *flat) {
    int tensor = piece_tensor[blockIdx.x];
    u64 start = piece_start[blockIdx.x], end = start + PIECE;
    u64 offset = offsets[tensor], address = addresses[tensor];
    int kind = kinds[tensor];
    if (end > sizes[tensor]) end = sizes[tensor];
    for (u64 i = start + threadIdx.x; i < end; i += blockDim.x) {
        float value = flat[offset + i];
        if (kind == 0) ((float *)address)[i] = value;
        else if (kind == 1) ((u16 *)address)[i] = fp16_of(__float_as_uint(value));
        else ((double *)address)[i] = (double)value;
    }
}

/* Elements start to stop - 1. A thread has four beside each other, at once where all of them are meant. */
#define CODEC(NAME, FROM, FROM4, TO, TO4, ONE)                                                     \
    KERNEL void NAME(const FROM *from, TO *to, u64 start, u64 stop) {                              \
        u64 at = (start / 4 + (u64)blockIdx.x * blockDim.x + threadIdx.x) * 4;                     \
        if (at >= start && at + 4 <= stop) {                                                       \
            FROM4 four = *(const FROM4 *)(from + at);                                              \
            TO4 made;                                                                              \
            made.x = ONE(four.x), made.y = ONE(four.y), made.z = ONE(four.z), made.w = ONE(four.w); \
            *(TO4 *)(to + at) = made;                                                              \
        } else {                                                                                   \
            for (u64 i = at; i < at + 4; i++)                                                      \
                if (i >= start && i < stop) to[i] = ONE(from[i]);                                  \
        }                                                                                          \
    }

CODEC(encode_bf16, u32, uint4, u16, ushort4, bf16_of)
CODEC(encode_fp16, u32, uint4, u16, ushort4, fp16_of)
CODEC(decode_bf16, u16, ushort4, u32, uint4, float_of_bf16)
CODEC(decode_fp16, u16, ushort4, u32, uint4, float_of_fp16)
"""


def blocks(start: int, stop: int) -> int:
    """Blocks of threads of a codec's kernel for elements `start` to `stop` - 1."""
    return -(-(-(-stop // LANES) - start // LANES) // THREADS)


def pieces(sizes: Sequence[int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
    """For tensors of that many elements each: (number of its tensor, its first element there) of each piece."""
    tensors, starts = [], []
    for number, size in enumerate(sizes):
        for start in range(0, size, PIECE):
            tensors.append(number)
            starts.append(start)
    return np.array(tensors, np.int32), np.array(starts, np.uint64)
