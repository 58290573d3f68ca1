// A mixture-of-experts layer from router logits to output, on the GPU when there is one, else on the CPU by the same
// calls. The result is checked against the definition in plain loops.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "tessera/moe/layer.h"
#include "tessera/moe/router.h"
#ifdef TESSERA_HAVE_CUDA
#include <cuda_runtime.h>
#endif

using namespace tessera;

constexpr size_t kTokens = 300, kHidden = 128, kInner = 64, kExperts = 8, kTopK = 2;
constexpr size_t kMatrix = kInner * kHidden;
const moe::Device kDevice = moe::device_available(moe::Device::cuda) ? moe::Device::cuda : moe::Device::cpu;

// Memory that the layer's device and this program can both read; kept until the program ends.
template <class T>
T* allocate(size_t count) {
#ifdef TESSERA_HAVE_CUDA
  T* shared = nullptr;
  if (kDevice == moe::Device::cuda) return cudaMallocManaged<T>(&shared, count * sizeof(T)), shared;
#endif
  return static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
}

uint16_t* random_bf16(size_t count, float scale) {
  uint16_t* values = allocate<uint16_t>(count);
  for (size_t i = 0; i < count; ++i) values[i] = f32_to_bf16(scale * static_cast<float>(std::rand() % 2001 - 1000));
  return values;
}

double dot(const uint16_t* a, const uint16_t* b) {
  double sum = 0;
  for (size_t i = 0; i < kHidden; ++i) sum += double{bf16_to_f32(a[i])} * double{bf16_to_f32(b[i])};
  return sum;
}

int main() {
  const uint16_t* x = random_bf16(kTokens * kHidden, 1e-3f);
  const uint16_t* gate_up = random_bf16(kExperts * 2 * kMatrix, 2e-4f);  // per expert: gate rows, then up rows
  const uint16_t* down = random_bf16(kExperts * kMatrix, 2e-4f);
  const uint16_t* logits = random_bf16(kTokens * kExperts, 4e-3f);

  int32_t* ids = allocate<int32_t>(kTokens * kTopK);
  float* weights = allocate<float>(kTokens * kTopK);
  moe::route({.num_experts = kExperts, .top_k = kTopK, .logits_dtype = DType::bf16},
             {logits, nullptr, ids, weights, nullptr, kTokens});

  const moe::Layer layer({.hidden_size = kHidden, .intermediate_size = kInner, .num_experts = kExperts, .top_k = kTopK},
                         {gate_up, down}, {kDevice});  // bf16 and SwiGLU, unless the configuration says otherwise
  const size_t bytes = layer.workspace_bytes(kTokens);
  uint16_t* out = allocate<uint16_t>(kTokens * kHidden);
  layer.run({x, ids, false, weights, out, kTokens}, allocate<std::byte>(bytes), bytes);
#ifdef TESSERA_HAVE_CUDA
  if (kDevice == moe::Device::cuda && cudaDeviceSynchronize() != cudaSuccess) return std::puts("the GPU failed"), 1;
#endif

  double error = 0, size = 0;
  for (size_t t = 0; t < kTokens; ++t) {
    double expected[kHidden] = {};
    for (size_t slot = t * kTopK; slot < (t + 1) * kTopK; ++slot) {
      const auto expert = static_cast<size_t>(ids[slot]);
      for (size_t i = 0; i < kInner; ++i) {
        const uint16_t* gate = gate_up + expert * 2 * kMatrix + i * kHidden;
        const double g = dot(gate, x + t * kHidden), up = dot(gate + kMatrix, x + t * kHidden);
        const double h = weights[slot] * up * g / (1 + std::exp(-g));
        for (size_t c = 0; c < kHidden; ++c) expected[c] += h * bf16_to_f32(down[expert * kMatrix + c * kInner + i]);
      }
    }
    for (size_t c = 0; c < kHidden; ++c) size += expected[c] * expected[c];
    for (size_t c = 0; c < kHidden; ++c) error += std::pow(bf16_to_f32(out[t * kHidden + c]) - expected[c], 2);
  }
  std::printf("%zu tokens through the top %zu of %zu experts on the %s: relative error %.5f\n", kTokens, kTopK,
              kExperts, kDevice == moe::Device::cuda ? "GPU" : "CPU", std::sqrt(error / size));
  return std::sqrt(error / size) < 5e-3 ? 0 : 1;
}
