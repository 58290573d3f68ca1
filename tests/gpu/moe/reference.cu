#include "gpu/moe/reference.h"

#include "cuda/core/memory.h"
#include "cuda/cta/element.cuh"
#include "moe/judge/oracle_math.h"
#include "tessera/core/check.h"

namespace tessera::testing {
namespace {

using moe::oracle_math::Combined;
using moe::oracle_math::Dot;
using moe::oracle_math::element;
using moe::oracle_math::Expert;
using moe::oracle_math::Value;

constexpr int kThreads = 256;
constexpr int kLanes = moe::oracle_math::kLanes;
static_assert(kLanes == 32, "a part of a sum is a lane's");

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : memory_(count * sizeof(T) + 16), count_(count) {}
  T* data() { return memory_.as<T>(); }
  std::vector<T> download() const {
    std::vector<T> host(count_);
    TESSERA_CUDA_CHECK(cudaMemcpy(host.data(), memory_.data(), count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  cuda::DeviceBytes memory_;
  size_t count_;
};

// A warp is one sum: its lanes are the parts, every lane gets the whole.
struct Warp {
  DType dtype;

  __device__ double weight(const void* matrix, int64_t index) const { return element(matrix, dtype, index); }

  template <class Values, class Weights>
  __device__ Dot sum(int64_t depth, const Values& values, const Weights& weights) const {
    Dot dot;
    for (int64_t i = threadIdx.x % kLanes; i < depth; i += kLanes) dot.add(values(i), weights(i));
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      dot.add(Dot{__shfl_xor_sync(0xFFFFFFFFu, dot.sum, distance), __shfl_xor_sync(0xFFFFFFFFu, dot.error, distance),
                  __shfl_xor_sync(0xFFFFFFFFu, dot.magnitude, distance)});
    }
    return dot;
  }
};

struct Problem {
  moe::LayerConfig config;
  moe::LayerWeights weights;
  moe::LayerInputs inputs;
  double accumulator_unit;
  const int32_t* tokens;
  int64_t num_tokens;  // that are wanted
  Value* routed;       // [wanted tokens * k, I]
  Value* shared;       // [wanted tokens, I_s]
  double* out;         // [wanted tokens, H]
  double* bound;       // [wanted tokens, H]
};

__device__ int64_t warp_number() { return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes; }
__device__ bool is_first_lane() { return threadIdx.x % kLanes == 0; }

// Slot of [T, k] that is slot number `pair` of the wanted tokens.
__device__ int64_t source_slot(const Problem& p, int64_t pair) {
  const int64_t k = p.config.top_k;
  return p.tokens[pair / k] * k + pair % k;
}

__device__ void store_intermediate(const Problem& p, const Expert& expert, int64_t token, int64_t column, Value* to) {
  const Warp warp{p.config.dtype};
  const moe::oracle_math::Elements<Warp> elements{warp, p.config, p.accumulator_unit};
  const auto x = [&](int64_t i) {
    return element(p.inputs.x, p.config.dtype, p.tokens[token] * int64_t{p.config.hidden_size} + i);
  };
  const Value h = elements.intermediate(expert, x, column);
  if (is_first_lane()) *to = h;
}

// One warp an element of the routed slots' intermediate.
__global__ void routed_kernel(Problem p) {
  const int64_t index = warp_number();
  const int64_t width = p.config.intermediate_size;
  if (index >= p.num_tokens * p.config.top_k * width) return;
  const int64_t pair = index / width;
  const int64_t number = moe::oracle_math::expert_of_slot(p.config, p.weights, p.inputs, source_slot(p, pair));
  if (number < 0) return;
  store_intermediate(p, moe::oracle_math::routed_expert(p.config, p.weights, number), pair / p.config.top_k,
                     index % width, p.routed + index);
}

// The same of the shared expert's.
__global__ void shared_kernel(Problem p) {
  const int64_t index = warp_number();
  const int64_t width = p.config.shared_intermediate_size;
  if (index >= p.num_tokens * width) return;
  store_intermediate(p, moe::oracle_math::shared_expert(p.config, p.weights), index / width, index % width,
                     p.shared + index);
}

// One warp an output element.
__global__ void output_kernel(Problem p) {
  const int64_t index = warp_number();
  const int64_t hidden = p.config.hidden_size, width = p.config.intermediate_size;
  if (index >= p.num_tokens * hidden) return;
  const int64_t token = index / hidden, column = index % hidden;
  const Warp warp{p.config.dtype};
  const moe::oracle_math::Elements<Warp> elements{warp, p.config, p.accumulator_unit};
  Combined combined;
  const auto add = [&](const Expert& expert, const Value* intermediate, double weight) {
    const auto h = [&](int64_t i) { return intermediate[i]; };
    combined.add(weight, elements.row(expert, h, column));
  };
  for (int64_t pair = token * p.config.top_k; pair < (token + 1) * p.config.top_k; ++pair) {
    const int64_t slot = source_slot(p, pair);
    const int64_t number = moe::oracle_math::expert_of_slot(p.config, p.weights, p.inputs, slot);
    if (number < 0) continue;
    add(moe::oracle_math::routed_expert(p.config, p.weights, number), p.routed + pair * width,
        element(p.inputs.topk_weights, p.inputs.topk_weights_dtype, slot));
  }
  if (p.config.shared_intermediate_size != 0) {
    add(moe::oracle_math::shared_expert(p.config, p.weights), p.shared + token * p.config.shared_intermediate_size,
        p.inputs.shared_weight == nullptr ? 1.0 : p.inputs.shared_weight[p.tokens[token]]);
  }
  if (!is_first_lane()) return;
  p.out[index] = combined.sum.value;
  p.bound[index] = combined.bound(p.config.dtype);
}

void launch_warps(void (*kernel)(Problem), int64_t warps, const Problem& p) {
  if (warps == 0) return;
  kernel<<<static_cast<unsigned>((warps * kLanes + kThreads - 1) / kThreads), kThreads>>>(p);
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

__device__ uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

template <class Element>
__global__ void normal_kernel(uint32_t* data, size_t pairs, float scale, uint64_t seed) {
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < pairs; i += stride) {
    const uint64_t bits = mixed(mixed(i + seed * 0x9E3779B97F4A7C15ull) + seed);
    const float u1 = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
    const float u2 = static_cast<float>(bits & 0xFFFFFF) * 0x1p-24f;
    const float radius = scale * sqrtf(-2.0f * logf(u1));
    data[i] = cta::pack2(Element{}, radius * cospif(2.0f * u2), radius * sinpif(2.0f * u2));
  }
}

}  // namespace

moe::OracleResult reference_layer(const moe::LayerConfig& config, const moe::LayerWeights& weights,
                                  const moe::LayerInputs& inputs, const std::vector<int32_t>& tokens,
                                  double accumulator_unit) {
  TESSERA_CHECK(config.weight_format == moe::WeightFormat::dense, static_cast<int>(config.weight_format));
  if (tokens.empty()) return {};
  const size_t num = tokens.size(), hidden = static_cast<size_t>(config.hidden_size);
  DeviceArray<int32_t> device_tokens(num);
  TESSERA_CUDA_CHECK(cudaMemcpy(device_tokens.data(), tokens.data(), num * sizeof(int32_t), cudaMemcpyHostToDevice));
  DeviceArray<Value> routed(num * static_cast<size_t>(config.top_k) * static_cast<size_t>(config.intermediate_size));
  DeviceArray<Value> shared(num * static_cast<size_t>(config.shared_intermediate_size));
  DeviceArray<double> out(num * hidden), bound(num * hidden);
  const Problem problem{
      config,        weights,       inputs,     accumulator_unit, device_tokens.data(), static_cast<int64_t>(num),
      routed.data(), shared.data(), out.data(), bound.data()};
  const auto wanted = static_cast<int64_t>(num);
  launch_warps(routed_kernel, wanted * config.top_k * config.intermediate_size, problem);
  launch_warps(shared_kernel, wanted * config.shared_intermediate_size, problem);
  launch_warps(output_kernel, wanted * config.hidden_size, problem);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  return {out.download(), bound.download()};
}

void fill_normal(DType dtype, void* data, size_t count, float scale, uint64_t seed) {
  constexpr unsigned kCtas = 1024;
  auto* words = static_cast<uint32_t*>(data);
  if (dtype == DType::bf16) {
    normal_kernel<__nv_bfloat16><<<kCtas, kThreads>>>(words, count / 2, scale, seed);
  } else {
    normal_kernel<__half><<<kCtas, kThreads>>>(words, count / 2, scale, seed);
  }
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace tessera::testing
