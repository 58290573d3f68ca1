// The 16-bit element types of the expert kernels: conversion to and from fp32, always round-to-nearest-even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace tessera::cta {

// Two floats to two packed elements (first in the low half).
__device__ inline uint32_t pack2(__nv_bfloat16, float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline uint32_t pack2(__half, float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Two packed elements to two floats (exact).
__device__ inline float2 unpack2(__nv_bfloat16, uint32_t bits) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(bits));
}
__device__ inline float2 unpack2(__half, uint32_t bits) {
  return __half22float2(reinterpret_cast<const __half2&>(bits));
}

__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

}  // namespace tessera::cta
