/* The hot functions for AVX2 with FMA: eight lanes, so that the state of ChaCha fills the sixteen registers. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

#define LEVEL avx2
#define LANES 8
#include "level.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int nothing;
#endif
