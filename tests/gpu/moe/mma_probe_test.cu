// mma.sync and WGMMA give the same sums, bit for bit: what lets a small batch take the one and a large batch the other.
//
// 64 x 8 products over K by both, of normal numbers, of numbers whose exponents are far apart, and of numbers of one
// sign; WGMMA with the 64 rows as its first operand, mma.sync with 16 of them a warp.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "cuda/cta/element.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "gpu/guarded_buffer.h"

namespace tessera::testing {
namespace {

constexpr int kRows = 64;
constexpr int kColumns = 8;
constexpr int kThreads = 128;
constexpr int kStageK = 64;

struct Storage {
  alignas(1024) uint8_t a[kRows * cta::kSwizzleRowBytes];
  alignas(1024) uint8_t b[kColumns * cta::kSwizzleRowBytes];
};

template <class Element>
__device__ void load_stage(Storage& smem, const Element* a, const Element* b, int k, int k_begin) {
  __syncthreads();  // the stage before has been read
  for (int i = threadIdx.x; i < (kRows + kColumns) * 8; i += kThreads) {
    const int row = i / 8, chunk = i % 8;
    const bool is_a = row < kRows;
    const Element* const source = is_a ? a + row * k : b + (row - kRows) * k;
    uint8_t* const target =
        is_a ? smem.a + cta::swizzled_offset(row, chunk) : smem.b + cta::swizzled_offset(row - kRows, chunk);
    *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source + k_begin + chunk * 8);
  }
  ptx::fence_proxy_async();
  __syncthreads();  // the stage is written
}

__device__ void store(const float* acc, float* out) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = warp * 16 + lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
    out[row * kColumns + column] = acc[i];
  }
}

// a [64, k], b [8, k], k a multiple of 64; out [2][64][8]: WGMMA's, then mma.sync's.
template <class Element>
__global__ void __launch_bounds__(kThreads) both(const Element* a, const Element* b, int k, float* out) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto& smem = *reinterpret_cast<Storage*>(shared);
  ptx::Fragment<kColumns> by_wgmma;
  float by_mma[4] = {};
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int begin = 0; begin < k; begin += kStageK) {
    load_stage(smem, a, b, k, begin);
    const uint64_t a_desc = cta::wgmma_descriptor(cta::smem_address(smem.a));
    const uint64_t b_desc = cta::wgmma_descriptor(cta::smem_address(smem.b));
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kStageK / 16; ++i) {
      ptx::wgmma<Element, kColumns>(by_wgmma, a_desc + i * cta::kDescriptorKStep, b_desc + i * cta::kDescriptorKStep,
                                    begin > 0 || i > 0);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kStageK / 16; i += 2) {
      uint32_t rows[4];
      ptx::ldmatrix_x4(rows, cta::smem_address(smem.b) + cta::swizzled_offset(lane % 8, 2 * i + lane / 8));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t weights[4];
        ptx::ldmatrix_x4(
            weights, cta::smem_address(smem.a) + cta::swizzled_offset(warp * 16 + lane % 16, 2 * (i + j) + lane / 16));
        ptx::mma_m16n8k16(Element{}, by_mma, weights, rows[2 * j], rows[2 * j + 1]);
      }
    }
  }
  store(by_wgmma.values, out);
  store(by_mma, out + kRows * kColumns);
}

enum class Numbers { normal, spread, one_sign, tiny };

template <class Element>
std::vector<Element> make(Numbers kind, size_t count, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<Element> values(count);
  for (Element& value : values) {
    float x = normal(rng);
    if (kind == Numbers::spread) x = std::ldexp(x, static_cast<int>(rng() % 24) - 12);
    if (kind == Numbers::one_sign) x = std::abs(x);
    if (kind == Numbers::tiny) x = std::ldexp(x, -18 - static_cast<int>(rng() % 6));  // subnormal in fp16
    value = Element(x);
  }
  return values;
}

template <class Element>
void expect_equal(Numbers kind) {
  std::mt19937 rng(static_cast<unsigned>(kind) + 1);
  for (const int k : {64, 512, 2048, 7168}) {
    for (int trial = 0; trial < 40; ++trial) {
      const auto a = make<Element>(kind, static_cast<size_t>(kRows) * k, rng);
      const auto b = make<Element>(kind, static_cast<size_t>(kColumns) * k, rng);
      GuardedBuffer device_a(a.size() * sizeof(Element)), device_b(b.size() * sizeof(Element));
      GuardedBuffer out(2 * kRows * kColumns * sizeof(float));
      device_a.upload(a);
      device_b.upload(b);
      both<Element><<<1, kThreads, sizeof(Storage)>>>(static_cast<const Element*>(device_a.data()),
                                                      static_cast<const Element*>(device_b.data()), k,
                                                      static_cast<float*>(out.data()));
      TESSERA_CUDA_CHECK(cudaGetLastError());
      const auto bits = out.download<uint32_t>(2 * kRows * kColumns);
      const std::vector<uint32_t> by_wgmma(bits.begin(), bits.begin() + kRows * kColumns);
      const std::vector<uint32_t> by_mma(bits.begin() + kRows * kColumns, bits.end());
      ASSERT_EQ(by_wgmma, by_mma) << "K " << k << ", trial " << trial;
    }
  }
}

TEST(MmaProbe, SumsOfWgmma) {
  for (const Numbers kind : {Numbers::normal, Numbers::spread, Numbers::one_sign, Numbers::tiny}) {
    expect_equal<__nv_bfloat16>(kind);
    expect_equal<__half>(kind);
  }
}

}  // namespace
}  // namespace tessera::testing
