// The router kernel: every kind of routing, few and many tokens. Prints JSON with a table for the kernel's README.
//
//   bench_router > bench/results/router_h100.json
//
// Back to back launches on one stream, median of blocks; logits are random normal fp32. Each case is checked against
// the host's route on all tokens before it is timed.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/core/memory.h"
#include "cuda/core/stream.h"
#include "tessera/cuda/device.h"
#include "tessera/moe/cuda_router.h"

namespace tessera {
namespace {

constexpr int kBlocks = 9;
constexpr int kLaunches = 200;

template <class T>
cuda::DeviceBytes on_device(const std::vector<T>& values) {
  cuda::DeviceBytes memory(values.size() * sizeof(T));
  TESSERA_CUDA_CHECK(cudaMemcpy(memory.data(), values.data(), memory.bytes(), cudaMemcpyHostToDevice));
  return memory;
}

struct Case {
  const char* name;
  RouterConfig config;
};

// Microseconds a launch, or a negative number if the result is not the host's.
double measure(const RouterConfig& config, int32_t num_tokens) {
  const auto tokens = static_cast<size_t>(num_tokens);
  std::vector<float> logits(tokens * static_cast<size_t>(config.num_experts));
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  for (float& logit : logits) logit = normal(rng);
  std::vector<float> bias(static_cast<size_t>(config.num_experts), 0.0f);
  const size_t slots = tokens * static_cast<size_t>(config.top_k);
  std::vector<int32_t> host_ids(slots), ids(slots);
  std::vector<float> host_weights(slots), weights(slots);

  moe::RouterInputs inputs{};
  inputs.logits = logits.data();
  inputs.bias = config.kind == RouterKind::sigmoid_grouped ? bias.data() : nullptr;
  inputs.topk_ids = host_ids.data();
  inputs.topk_weights = host_weights.data();
  inputs.num_tokens = num_tokens;
  moe::route(config, inputs);

  const auto device_logits = on_device(logits), device_bias = on_device(bias), device_ids = on_device(ids),
             device_weights = on_device(weights);
  inputs.logits = device_logits.data();
  if (inputs.bias != nullptr) inputs.bias = device_bias.as<float>();
  inputs.topk_ids = device_ids.as<int32_t>();
  inputs.topk_weights = device_weights.as<float>();
  const cuda::Event begin(cuda::EventUse::time), end(cuda::EventUse::time);
  std::vector<double> blocks;
  for (int block = 0; block < kBlocks; ++block) {
    begin.record(nullptr);
    for (int i = 0; i < kLaunches; ++i) moe::cuda_route(config, inputs, nullptr);
    end.record(nullptr);
    end.synchronize();
    blocks.push_back(1e3 * end.milliseconds_since(begin) / kLaunches);
  }
  TESSERA_CUDA_CHECK(cudaMemcpy(ids.data(), inputs.topk_ids, slots * sizeof(int32_t), cudaMemcpyDeviceToHost));
  TESSERA_CUDA_CHECK(cudaMemcpy(weights.data(), inputs.topk_weights, slots * sizeof(float), cudaMemcpyDeviceToHost));
  if (ids != host_ids || weights != host_weights) return -1.0;
  std::sort(blocks.begin(), blocks.end());
  return blocks[blocks.size() / 2];
}

int run() {
  const Case cases[] = {
      {"softmax, top-k; E 128, k 8", {RouterKind::softmax_topk, 128, 8}},
      {"top-k, softmax; E 128, k 8", {RouterKind::topk_softmax, 128, 8}},
      {"softmax, top-k, renormalised; E 512, k 10", {RouterKind::softmax_topk_renormalize, 512, 10}},
      {"sigmoid, 4 of 8 groups; E 256, k 8", {RouterKind::sigmoid_grouped, 256, 8, 8, 4, 2.5f}},
      {"sigmoid, renormalised; E 8, k 2", {RouterKind::sigmoid_renormalize, 8, 2}},
  };
  const int32_t token_counts[] = {1, 128, 4096, 16384};
  std::string why_none;
  const std::vector<cuda::DeviceFacts> devices = cuda::devices(why_none);
  if (devices.empty()) throw std::runtime_error(why_none);
  std::printf(
      "{\n \"what\": \"router kernel on %s: microseconds a launch, back to back, results equal to the host's\",\n",
      devices[0].name.c_str());
  std::printf(" \"table\": {\n  \"columns\": [\"routing\"");
  for (const int32_t tokens : token_counts) std::printf(", \"T = %d, us\"", tokens);
  std::printf("],\n  \"rows\": [");
  int wrong = 0;
  for (size_t n = 0; n < std::size(cases); ++n) {
    std::printf("%s\n   [\"%s\"", n == 0 ? "" : ",", cases[n].name);
    for (const int32_t tokens : token_counts) {
      const double us = measure(cases[n].config, tokens);
      wrong += us < 0 ? 1 : 0;
      std::printf(", %.1f", us);
    }
    std::printf("]");
  }
  std::printf("\n  ]\n }\n}\n");
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace tessera

int main() {
  try {
    return tessera::run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_router: %s\n", error.what());
    return 1;
  }
}
