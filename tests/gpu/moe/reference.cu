#include "gpu/moe/reference.h"

#include <cmath>

#include "cuda/core/memory.h"
#include "cuda/cta/element.cuh"

namespace tessera::testing {
namespace {

constexpr int kThreads = 256;
constexpr double kAccumulatorUnit = 0x1p-21;  // WGMMA accumulators truncate

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

__device__ double unit(__nv_bfloat16) { return 0x1p-8; }
__device__ double unit(__half) { return 0x1p-11; }

// Rounds to the element type through fp32 (the double rounding moves a value only when it lies within 2^-24 of a tie).
template <class Element>
__device__ double rounded(double value) {
  const uint32_t bits = cta::pack2(Element{}, static_cast<float>(value), 0.0f);
  return static_cast<double>(cta::unpack2(Element{}, bits).x);
}

__device__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

__device__ double activation(const Activation& a, double x) {
  switch (a.kind) {
    case ActivationKind::silu: return x * sigmoid(x);
    case ActivationKind::gelu_tanh: return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case ActivationKind::gelu_erf: return 0.5 * x * (1.0 + erf(x * 0.7071067811865476));
    case ActivationKind::relu: return x > 0.0 ? x : 0.0;
    case ActivationKind::relu_squared: return x > 0.0 ? x * x : 0.0;
    default: return x;
  }
}

__device__ double gated_activation(const Activation& a, double gate, double up) {
  if (a.kind != ActivationKind::clamped_swiglu) return activation(a, gate) * up;
  const double limit = a.limit;
  const double g = fmin(gate, limit);
  return (fmin(fmax(up, -limit), limit) + a.beta) * g * sigmoid(a.alpha * g);
}

// Sum and sum of magnitudes of a dot product, by one warp; every lane gets both.
struct Dot {
  double sum = 0.0;
  double magnitude = 0.0;
};

template <class Element, class Left>
__device__ Dot warp_dot(const Left* a, const Element* b, int32_t length) {
  Dot dot;
  for (int32_t i = static_cast<int32_t>(threadIdx.x) % 32; i < length; i += 32) {
    double left;
    if constexpr (sizeof(Left) == sizeof(double)) {
      left = a[i];
    } else {
      left = cta::to_float(a[i]);
    }
    const double product = left * static_cast<double>(cta::to_float(b[i]));
    dot.sum += product;
    dot.magnitude += fabs(product);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    dot.sum += __shfl_xor_sync(0xFFFFFFFFu, dot.sum, distance);
    dot.magnitude += __shfl_xor_sync(0xFFFFFFFFu, dot.magnitude, distance);
  }
  return dot;
}

struct Problem {
  moe::LayerConfig config;
  moe::LayerWeights weights;
  moe::LayerInputs inputs;
  const int32_t* tokens;
  int32_t num_pairs;     // wanted tokens * k
  double* intermediate;  // [num_pairs, I]
  double* out;           // [wanted tokens, H]
  double* bound;         // [wanted tokens, H]
};

// Global index of a wanted (token, slot) pair, and its expert or -1.
__device__ int64_t source_pair(const Problem& p, int32_t pair) {
  return static_cast<int64_t>(p.tokens[pair / p.config.top_k]) * p.config.top_k + pair % p.config.top_k;
}
__device__ int32_t pair_expert(const Problem& p, int32_t pair) {
  const int64_t source = source_pair(p, pair);
  const int64_t id = p.inputs.ids_are_64_bit ? static_cast<const int64_t*>(p.inputs.topk_ids)[source]
                                             : static_cast<const int32_t*>(p.inputs.topk_ids)[source];
  const int64_t local = id - p.config.first_expert;
  return local >= 0 && local < p.config.num_experts ? static_cast<int32_t>(local) : -1;
}

template <class Element>
__device__ double bias_at(const void* bias, int64_t index) {
  return bias == nullptr ? 0.0 : static_cast<double>(cta::to_float(static_cast<const Element*>(bias)[index]));
}

// One warp an intermediate element.
template <class Element>
__global__ void intermediate_kernel(Problem p) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int32_t width = p.config.intermediate_size;
  if (index >= static_cast<int64_t>(p.num_pairs) * width) return;
  const auto pair = static_cast<int32_t>(index / width);
  const auto column = static_cast<int32_t>(index % width);
  const int32_t expert = pair_expert(p, pair);
  if (expert < 0) return;
  const int64_t hidden = p.config.hidden_size;
  const Element* x = static_cast<const Element*>(p.inputs.x) + p.tokens[pair / p.config.top_k] * hidden;
  const int64_t rows = p.config.gated ? 2 * static_cast<int64_t>(width) : width;
  const auto* weight = static_cast<const Element*>(p.weights.gate_up) + expert * rows * hidden;
  const double first = warp_dot(x, weight + column * hidden, p.config.hidden_size).sum +
                       bias_at<Element>(p.weights.gate_up_bias, expert * rows + column);
  double h = 0.0;
  if (p.config.gated) {
    const double up = warp_dot(x, weight + (width + column) * hidden, p.config.hidden_size).sum +
                      bias_at<Element>(p.weights.gate_up_bias, expert * rows + width + column);
    h = gated_activation(p.config.activation, first, up);
  } else {
    h = activation(p.config.activation, first);
  }
  if (threadIdx.x % 32 == 0) p.intermediate[index] = rounded<Element>(h);
}

// One warp an output element.
template <class Element>
__global__ void output_kernel(Problem p) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int32_t hidden = p.config.hidden_size;
  if (index >= static_cast<int64_t>(p.num_pairs) / p.config.top_k * hidden) return;
  const auto token = static_cast<int32_t>(index / hidden);
  const auto column = static_cast<int32_t>(index % hidden);
  const double u = unit(Element{});
  double sum = 0.0;
  double bound = 0.0;
  for (int32_t slot = 0; slot < p.config.top_k; ++slot) {
    const int32_t pair = token * p.config.top_k + slot;
    const int32_t expert = pair_expert(p, pair);
    if (expert < 0) continue;
    const int64_t width = p.config.intermediate_size;
    const auto* weight =
        static_cast<const Element*>(p.weights.down) + (static_cast<int64_t>(expert) * hidden + column) * width;
    const Dot dot = warp_dot(p.intermediate + pair * width, weight, p.config.intermediate_size);
    const double y = dot.sum + bias_at<Element>(p.weights.down_bias, static_cast<int64_t>(expert) * hidden + column);
    const double weight_of_slot = static_cast<const float*>(p.inputs.topk_weights)[source_pair(p, pair)];
    sum += weight_of_slot * rounded<Element>(y);
    bound += fabs(weight_of_slot) * (2.0 * u * fabs(y) + (2.0 * u + 4.0 * kAccumulatorUnit) * dot.magnitude);
  }
  if (threadIdx.x % 32 == 0) {
    p.out[index] = sum;
    p.bound[index] = bound + 2.0 * u * fabs(sum);
  }
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

template <class Element>
__global__ void integer_kernel(uint32_t* data, size_t pairs, int limit, int zero_percent, uint64_t seed) {
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < pairs; i += stride) {
    float value[2];
    for (int half = 0; half < 2; ++half) {
      const uint64_t bits = mixed(2 * i + half + seed * 0x9E3779B97F4A7C15ull);
      const int number = static_cast<int>((bits >> 32) % static_cast<uint64_t>(2 * limit + 1)) - limit;
      value[half] = static_cast<int>(bits % 100) < zero_percent ? 0.0f : static_cast<float>(number);
    }
    data[i] = cta::pack2(Element{}, value[0], value[1]);
  }
}

template <class Element>
void run_reference(const Problem& p) {
  const int64_t h_warps = static_cast<int64_t>(p.num_pairs) * p.config.intermediate_size;
  const int64_t o_warps = static_cast<int64_t>(p.num_pairs) / p.config.top_k * p.config.hidden_size;
  intermediate_kernel<Element><<<static_cast<unsigned>((h_warps * 32 + kThreads - 1) / kThreads), kThreads>>>(p);
  TESSERA_CUDA_CHECK(cudaGetLastError());
  output_kernel<Element><<<static_cast<unsigned>((o_warps * 32 + kThreads - 1) / kThreads), kThreads>>>(p);
  TESSERA_CUDA_CHECK(cudaGetLastError());
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
}

}  // namespace

ReferenceResult reference_layer(const moe::LayerConfig& config, const moe::LayerWeights& weights,
                                const moe::LayerInputs& inputs, const std::vector<int32_t>& tokens) {
  const size_t pairs = tokens.size() * static_cast<size_t>(config.top_k);
  DeviceArray<int32_t> device_tokens(tokens.size());
  TESSERA_CUDA_CHECK(
      cudaMemcpy(device_tokens.data(), tokens.data(), tokens.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
  DeviceArray<double> intermediate(pairs * static_cast<size_t>(config.intermediate_size));
  DeviceArray<double> out(tokens.size() * static_cast<size_t>(config.hidden_size));
  DeviceArray<double> bound(tokens.size() * static_cast<size_t>(config.hidden_size));
  if (tokens.empty()) return {};
  const Problem problem{
      config,     weights,     inputs, device_tokens.data(), static_cast<int32_t>(pairs), intermediate.data(),
      out.data(), bound.data()};
  config.dtype == DType::bf16 ? run_reference<__nv_bfloat16>(problem) : run_reference<__half>(problem);
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

void fill_integers(DType dtype, void* data, size_t count, int limit, int zero_percent, uint64_t seed) {
  constexpr unsigned kCtas = 1024;
  auto* words = static_cast<uint32_t*>(data);
  if (dtype == DType::bf16) {
    integer_kernel<__nv_bfloat16><<<kCtas, kThreads>>>(words, count / 2, limit, zero_percent, seed);
  } else {
    integer_kernel<__half><<<kCtas, kThreads>>>(words, count / 2, limit, zero_percent, seed);
  }
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace tessera::testing
