// Functions compiled several times, for wider and narrower vector units; the loader picks one for the processor.
//
//   TESSERA_VECTOR_CLONES void add(...) { ... }
//
// Only for loops of additions, products and comparisons whose order the code fixes: contraction into fused operations
// is off (cmake/warnings.cmake), so that every clone gives the same bits. Sanitizers run before the loader's choice and
// clang 14 has no such attribute for C++: both get the plain function.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define TESSERA_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define TESSERA_VECTOR_CLONES
#endif
