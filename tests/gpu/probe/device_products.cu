#include "gpu/probe/device_products.h"

#include "cuda/core/cuda_check.h"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "gpu/probe/wgmma_shapes.cuh"
#include "tessera/core/check.h"

namespace tessera::testing {
namespace {

constexpr int kTileRows = 64;
constexpr int kThreads = 128;
constexpr int kStepsARow = kProbeRowBytes / 32;
constexpr size_t kOutBytes = sizeof(float) * kProbeRows * kProbeRows;

struct Params {
  const uint8_t* first;   // [256][row_bytes]: 64 rows a CTA
  const uint8_t* second;  // [256][row_bytes]: kColumns rows a CTA, past the last from the first again
  size_t row_bytes;
  int num_steps;
  const float* start;  // [256][256] or null
  float* out;
  bool swapped;  // out and start are [second][first]
};

__device__ int place(const Params& params, int row, int column) {
  return params.swapped ? column * kProbeRows + row : row * kProbeRows + column;
}

__device__ void load_slab(uint8_t* smem, const uint8_t* matrix, size_t row_bytes, int first_row, int num_rows,
                          int slab) {
  constexpr int kChunks = kProbeRowBytes / cta::kChunkBytes;
  for (int i = static_cast<int>(threadIdx.x); i < num_rows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks, source = (first_row + row) % kProbeRows;
    *reinterpret_cast<uint4*>(smem + cta::swizzled_offset(row, chunk)) =
        *reinterpret_cast<const uint4*>(matrix + source * row_bytes + slab * kProbeRowBytes + chunk * cta::kChunkBytes);
  }
}

// This thread's registers of A for one instruction, from the slab in shared memory.
__device__ void load_a(uint32_t (&registers)[4], const uint8_t* smem, int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = warp * 16 + lane / 4 + i % 2 * 8, chunk = 2 * step + i / 2;
    registers[i] = *reinterpret_cast<const uint32_t*>(smem + cta::swizzled_offset(row, chunk) + lane % 4 * 4);
  }
}

// kSteps of the slab's instructions, from `step` on, all in flight at once.
template <class Operands, int kSteps, FirstOperand kFirst, int kSums>
__device__ void multiply_steps(float (&d)[kSums], const uint8_t* a, const uint8_t* b, int step, bool accumulates) {
  const uint64_t a_desc = cta::wgmma_descriptor(cta::smem_address(a)) + step * cta::kDescriptorKStep;
  const uint64_t b_desc = cta::wgmma_descriptor(cta::smem_address(b)) + step * cta::kDescriptorKStep;
  uint32_t registers[kSteps][4];
  if constexpr (kFirst == FirstOperand::registers) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) load_a(registers[i], a, step + i);
  }
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const uint64_t b_step = b_desc + i * cta::kDescriptorKStep;
    if constexpr (kFirst == FirstOperand::registers)
      Wgmma<Operands, 2 * kSums>::multiply(d, registers[i], b_step, accumulates || i > 0);
    else
      Wgmma<Operands, 2 * kSums>::multiply(d, a_desc + i * cta::kDescriptorKStep, b_step, accumulates || i > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
}

template <class Operands, int kColumns, FirstOperand kFirst>
__global__ void __launch_bounds__(kThreads) product_kernel(const Params params) {
  __shared__ __align__(cta::kSwizzleAtomBytes) uint8_t a[kTileRows * kProbeRowBytes];
  __shared__ __align__(cta::kSwizzleAtomBytes) uint8_t b[kColumns * kProbeRowBytes];
  const int row_begin = static_cast<int>(blockIdx.x) * kTileRows,
            column_begin = static_cast<int>(blockIdx.y) * kColumns;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const auto row_of = [&](int i) { return row_begin + warp * 16 + lane / 4 + i % 4 / 2 * 8; };
  const auto column_of = [&](int i) { return column_begin + i / 4 * 8 + lane % 4 * 2 + i % 2; };
  float d[kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    const bool given = params.start != nullptr && column_of(i) < kProbeRows;
    d[i] = given ? params.start[place(params, row_of(i), column_of(i))] : 0.0f;
  }
  for (int first_step = 0; first_step < params.num_steps; first_step += kStepsARow) {
    load_slab(a, params.first, params.row_bytes, row_begin, kTileRows, first_step / kStepsARow);
    load_slab(b, params.second, params.row_bytes, column_begin, kColumns, first_step / kStepsARow);
    ptx::fence_proxy_async();  // this thread's stores, before WGMMA reads them through the async proxy
    __syncthreads();           // all stores are made and fenced
    const int count = params.num_steps - first_step;
    const bool accumulates = params.start != nullptr || first_step > 0;
    if (count >= kStepsARow) {
      multiply_steps<Operands, kStepsARow, kFirst>(d, a, b, 0, accumulates);
    } else {
      for (int i = 0; i < count; ++i) multiply_steps<Operands, 1, kFirst>(d, a, b, i, accumulates || i > 0);
    }
    __syncthreads();  // all warps' products have read the slab
  }
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    if (column_of(i) < kProbeRows) params.out[place(params, row_of(i), column_of(i))] = d[i];
  }
}

template <class Operands, FirstOperand kFirst>
void launch(int columns, const Params& params) {
  const dim3 grid(kProbeRows / kTileRows, static_cast<unsigned>((kProbeRows + columns - 1) / columns));
  switch (columns) {
#define TESSERA_WGMMA_SHAPE(N, ...)                                  \
  case N:                                                            \
    product_kernel<Operands, N, kFirst><<<grid, kThreads>>>(params); \
    break;
#include "cuda/ptx/wgmma_shapes.def"
#undef TESSERA_WGMMA_SHAPE
    default: TESSERA_CHECK(false, columns);
  }
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

template <class Operands>
void launch(ProbeShape shape, const Params& params) {
  if (shape.first == FirstOperand::registers)
    launch<Operands, FirstOperand::registers>(shape.columns, params);
  else
    launch<Operands, FirstOperand::shared_memory>(shape.columns, params);
}

template <class T>
T* allocated(size_t bytes) {
  T* memory = nullptr;
  TESSERA_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&memory), bytes));
  return memory;
}

}  // namespace

struct DeviceProducts::State {
  moe::TensorCoreType type;
  size_t row_bytes;
  uint8_t *a, *b;
  float *start, *out;
};

DeviceProducts::DeviceProducts(moe::TensorCoreType type, const std::vector<uint8_t>& a, const std::vector<uint8_t>& b)
    : state_(new State{type, a.size() / kProbeRows, allocated<uint8_t>(a.size()), allocated<uint8_t>(b.size()),
                       allocated<float>(kOutBytes), allocated<float>(kOutBytes)}) {
  TESSERA_CHECK(a.size() == b.size() && state_->row_bytes % kProbeRowBytes == 0, a.size(), b.size());
  TESSERA_CUDA_CHECK(cudaMemcpy(state_->a, a.data(), a.size(), cudaMemcpyHostToDevice));
  TESSERA_CUDA_CHECK(cudaMemcpy(state_->b, b.data(), b.size(), cudaMemcpyHostToDevice));
}

DeviceProducts::~DeviceProducts() {
  cudaFree(state_->a);
  cudaFree(state_->b);
  cudaFree(state_->start);
  cudaFree(state_->out);
}

std::vector<float> DeviceProducts::run(ProbeShape shape, int num_steps, const std::vector<float>& start) {
  TESSERA_CHECK(static_cast<size_t>(num_steps) * 32 <= state_->row_bytes, num_steps);
  if (!start.empty()) TESSERA_CUDA_CHECK(cudaMemcpy(state_->start, start.data(), kOutBytes, cudaMemcpyHostToDevice));
  TESSERA_CUDA_CHECK(cudaMemset(state_->out, 0xA5, kOutBytes));
  const Params params{shape.swapped ? state_->b : state_->a,
                      shape.swapped ? state_->a : state_->b,
                      state_->row_bytes,
                      num_steps,
                      start.empty() ? nullptr : state_->start,
                      state_->out,
                      shape.swapped};
  switch (state_->type) {
    case moe::TensorCoreType::bf16: launch<Bf16Operands>(shape, params); break;
    case moe::TensorCoreType::f16: launch<F16Operands>(shape, params); break;
    case moe::TensorCoreType::e4m3: launch<E4m3Operands>(shape, params); break;
  }
  std::vector<float> out(static_cast<size_t>(kProbeRows) * kProbeRows);
  TESSERA_CUDA_CHECK(cudaMemcpy(out.data(), state_->out, kOutBytes, cudaMemcpyDeviceToHost));
  return out;
}

}  // namespace tessera::testing
