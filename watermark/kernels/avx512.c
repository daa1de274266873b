/* The hot functions for AVX-512: sixteen lanes, half of the thirty-two registers for the state of ChaCha. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif
#include <immintrin.h>

#define LEVEL avx512
#define LANES 16
#include "level.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int nothing;
#endif
