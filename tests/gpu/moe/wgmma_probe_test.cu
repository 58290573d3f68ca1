// PTX leaves the order of the sum inside one WGMMA open. "Same bits whatever the batch" needs more: the dot product of
// a token and a weight row must have the same bits wherever both stand in a tile, whatever their neighbours hold, for
// every instruction shape the kernels may use (ptx/wgmma_shapes.def), and with operands swapped (tokens as the second
// operand). This asks the GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/core/memory.h"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "tessera/core/dtype.h"

namespace tessera::testing {
namespace {

constexpr int kRows = 64;  // of the first operand, every shape's
constexpr int kSlab = 64;  // elements of K in one swizzled row
constexpr int kNumSlabs = 3;
constexpr int kLength = kSlab * kNumSlabs;
constexpr int kThreads = 128;

template <class Element>
__device__ void load_slab(uint8_t* smem, const Element* pool, const int32_t* rows, int num_rows, int slab) {
  constexpr int kChunkElements = cta::kChunkBytes / 2;
  constexpr int kChunks = kSlab / kChunkElements;
  for (int i = static_cast<int>(threadIdx.x); i < num_rows * kChunks; i += kThreads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    const Element* source = pool + static_cast<int64_t>(rows[row]) * kLength + slab * kSlab + chunk * kChunkElements;
    *reinterpret_cast<uint4*>(smem + cta::swizzled_offset(row, chunk)) = *reinterpret_cast<const uint4*>(source);
  }
}

// out[i, j] = pool[a_rows[i]] . pool[b_rows[j]]; one tile a CTA, x over the first operand's tiles.
template <class Element, int kColumns>
__global__ void __launch_bounds__(kThreads)
    product_kernel(const Element* pool, const int32_t* a_rows, const int32_t* b_rows, float* out) {
  alignas(cta::kSwizzleAtomBytes) __shared__ uint8_t a[kRows * cta::kSwizzleRowBytes];
  alignas(cta::kSwizzleAtomBytes) __shared__ uint8_t b[kColumns * cta::kSwizzleRowBytes];
  const int64_t a_begin = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t b_begin = static_cast<int64_t>(blockIdx.y) * kColumns;
  ptx::Fragment<kColumns> d;
  for (int slab = 0; slab < kNumSlabs; ++slab) {
    load_slab(a, pool, a_rows + a_begin, kRows, slab);
    load_slab(b, pool, b_rows + b_begin, kColumns, slab);
    ptx::fence_proxy_async();  // this thread's stores, before WGMMA reads them through the async proxy
    __syncthreads();           // all stores are made and fenced
    ptx::wgmma_fence();
    for (int i = 0; i < kSlab / 16; ++i) {
      ptx::wgmma<Element, kColumns>(d, cta::wgmma_descriptor(cta::smem_address(a)) + i * cta::kDescriptorKStep,
                                    cta::wgmma_descriptor(cta::smem_address(b)) + i * cta::kDescriptorKStep,
                                    slab > 0 || i > 0);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    __syncthreads();  // all warps' products have read the slab
  }
  const int64_t stride = static_cast<int64_t>(gridDim.y) * kColumns;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first_row = a_begin + threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < ptx::Fragment<kColumns>::kRegisters; ++i) {
    const int64_t row = first_row + i % 4 / 2 * 8;
    out[row * stride + b_begin + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
  }
}

template <class T>
class DeviceCopy {
 public:
  explicit DeviceCopy(const std::vector<T>& host) : memory_(host.size() * sizeof(T)) {
    TESSERA_CUDA_CHECK(cudaMemcpy(memory_.data(), host.data(), memory_.bytes(), cudaMemcpyHostToDevice));
  }
  T* data() const { return memory_.template as<T>(); }

 private:
  cuda::DeviceBytes memory_;
};

DType dtype_of(__nv_bfloat16) { return DType::bf16; }
DType dtype_of(__half) { return DType::f16; }

// Vectors of kLength elements: kTokens tokens, kWeights weight rows, then vectors no neighbour should have to fear.
constexpr int kTokens = 256;
constexpr int kWeights = 256;
constexpr int kHostile = 64;

template <class Element>
class Pool {
 public:
  Pool() : values_(static_cast<size_t>(kTokens + kWeights + kHostile) * kLength) {
    std::mt19937 rng(5);
    std::normal_distribution<float> normal;
    const float largest = dtype_ == DType::bf16 ? 3e38f : 65504.0f;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    const float special[] = {nan, infinity, -infinity, largest, -largest, 0.0f, -0.0f, 6e-8f};
    for (size_t i = 0; i < values_.size(); ++i) {
      const size_t hostile_begin = static_cast<size_t>(kTokens + kWeights) * kLength;
      const float value = i < hostile_begin ? normal(rng) : special[rng() % std::size(special)];
      values_[i] = dtype_ == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
    }
  }
  /// The dot product in fp64, and the sum of the magnitudes of its terms.
  std::pair<double, double> dot(int a, int b) const {
    double sum = 0.0, magnitude = 0.0;
    for (int i = 0; i < kLength; ++i) {
      const double product = value(a, i) * value(b, i);
      sum += product;
      magnitude += std::fabs(product);
    }
    return {sum, magnitude};
  }
  /// Every vector with its slabs of K in the opposite order: the same dot products, summed in another order.
  void reverse_slabs() {
    for (size_t begin = 0; begin < values_.size(); begin += kLength) {
      for (int i = 0; i < kSlab; ++i) std::swap(values_[begin + i], values_[begin + kLength - kSlab + i]);
    }
  }
  /// Bits of the products, [first.size(), second.size()]; first.size() must be a multiple of kRows. The last tile of
  /// the second operand is filled up with its first vectors, whose products are dropped.
  template <int kColumns>
  std::vector<uint32_t> products(const std::vector<int32_t>& first, const std::vector<int32_t>& second) const {
    std::vector<int32_t> filled = second;
    while (filled.size() % kColumns != 0) filled.push_back(second[filled.size() - second.size()]);
    const DeviceCopy<uint16_t> pool(values_);
    const DeviceCopy<int32_t> a_rows(first), b_rows(filled);
    std::vector<float> host(first.size() * filled.size(), std::numeric_limits<float>::quiet_NaN());
    const DeviceCopy<float> out(host);
    const dim3 grid(static_cast<unsigned>(first.size() / kRows), static_cast<unsigned>(filled.size() / kColumns));
    product_kernel<Element, kColumns>
        <<<grid, kThreads>>>(reinterpret_cast<const Element*>(pool.data()), a_rows.data(), b_rows.data(), out.data());
    TESSERA_CUDA_CHECK(cudaGetLastError());
    std::vector<uint32_t> bits(first.size() * second.size());
    TESSERA_CUDA_CHECK(cudaMemcpy2D(bits.data(), second.size() * sizeof(float), out.data(),
                                    filled.size() * sizeof(float), second.size() * sizeof(float), first.size(),
                                    cudaMemcpyDeviceToHost));
    return bits;
  }

 private:
  double value(int vector, int i) const {
    const uint16_t bits = values_[static_cast<size_t>(vector) * kLength + static_cast<size_t>(i)];
    return dtype_ == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
  }

  DType dtype_ = dtype_of(Element{});
  std::vector<uint16_t> values_;
};

std::vector<int32_t> counted(int begin, int count) {
  std::vector<int32_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), begin);
  return numbers;
}

bool is_hostile(int32_t vector) { return vector >= kTokens + kWeights; }

/// How many products of `first` x `second` differ from `expected` [token, weight row]; those with hostile vectors, and
/// pairs of two tokens or two weight rows, are not asked about.
size_t num_different(const std::vector<uint32_t>& got, const std::vector<int32_t>& first,
                     const std::vector<int32_t>& second, const std::vector<uint32_t>& expected) {
  size_t different = 0;
  for (size_t i = 0; i < first.size(); ++i) {
    for (size_t j = 0; j < second.size(); ++j) {
      const int32_t token = std::min(first[i], second[j]);
      const int32_t weight = std::max(first[i], second[j]);
      if (token >= kTokens || weight < kTokens || is_hostile(weight)) continue;
      const size_t place = static_cast<size_t>(token) * kWeights + static_cast<size_t>(weight - kTokens);
      different += got[i * second.size() + j] != expected[place];
    }
  }
  return different;
}

/// Tokens and weight rows in this shape, in any places, beside any neighbours, as either operand.
template <class Element, int kColumns>
void expect_same_bits(const Pool<Element>& pool, const std::vector<uint32_t>& expected) {
  std::mt19937 rng(17);
  for (int arrangement = 0; arrangement < 12; ++arrangement) {
    std::vector<int32_t> tokens = counted(0, kTokens), weights = counted(kTokens, kWeights);
    if (arrangement > 0) {
      std::shuffle(tokens.begin(), tokens.end(), rng);
      std::shuffle(weights.begin(), weights.end(), rng);
    }
    if (arrangement % 3 == 2) {  // a third of the places: NaN, infinities, the largest and the smallest numbers, zeros
      for (auto* rows : {&tokens, &weights}) {
        for (int32_t& row : *rows) {
          if (rng() % 3 == 0) row = kTokens + kWeights + static_cast<int32_t>(rng() % kHostile);
        }
      }
    }
    const auto normal = pool.template products<kColumns>(tokens, weights);
    EXPECT_EQ(num_different(normal, tokens, weights, expected), 0u)
        << "N " << kColumns << " arrangement " << arrangement;
    const auto swapped = pool.template products<kColumns>(weights, tokens);
    EXPECT_EQ(num_different(swapped, weights, tokens, expected), 0u)
        << "N " << kColumns << " swapped, arrangement " << arrangement;
  }
}

/// The products the shapes are compared with must be products, and a sum in another order must show.
template <class Element>
std::vector<uint32_t> judged_products(Pool<Element> pool) {
  const auto tokens = counted(0, kTokens), weights = counted(kTokens, kWeights);
  const auto expected = pool.template products<256>(tokens, weights);
  for (size_t i = 0; i < expected.size(); i += 37) {
    const auto [sum, magnitude] = pool.dot(static_cast<int>(i / kWeights), kTokens + static_cast<int>(i % kWeights));
    float got = 0.0f;
    std::memcpy(&got, &expected[i], sizeof got);
    EXPECT_LE(std::fabs(got - sum), 4 * 0x1p-21 * magnitude) << i;
  }
  pool.reverse_slabs();
  const auto other_order = pool.template products<256>(tokens, weights);
  EXPECT_GT(num_different(other_order, tokens, weights, expected), expected.size() / 100);
  return expected;
}

template <class Element>
void probe_every_shape() {
  const Pool<Element> pool;
  const auto expected = judged_products(pool);
#define TESSERA_WGMMA_SHAPE(N, ...) expect_same_bits<Element, N>(pool, expected);
#include "cuda/ptx/wgmma_shapes.def"
#undef TESSERA_WGMMA_SHAPE
}

TEST(WgmmaProbe, Bf16ShapesGiveTheSameBits) { probe_every_shape<__nv_bfloat16>(); }

TEST(WgmmaProbe, F16ShapesGiveTheSameBits) { probe_every_shape<__half>(); }

}  // namespace
}  // namespace tessera::testing
