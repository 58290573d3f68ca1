// A mixture-of-experts layer captured once in a CUDA graph and replayed with tokens and routing that change: the graph
// records no routing, only where it will lie. Each replay is compared, bit for bit, with a call outside the graph.
#include <cstdio>
#ifdef TESSERA_HAVE_CUDA
#include <cuda_runtime.h>
#endif
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "tessera/moe/layer.h"

using namespace tessera;

#ifdef TESSERA_HAVE_CUDA
namespace {

constexpr size_t kTokens = 64, kHidden = 256, kInner = 128, kExperts = 16, kTopK = 4;

void require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* allocate(size_t count) {
  void* memory = nullptr;
  require(cudaMallocManaged(&memory, count * sizeof(T)));  // so that this program can fill and read it
  return static_cast<T*>(memory);
}

uint16_t* random_bf16(size_t count, std::mt19937& random, float scale) {
  uint16_t* values = allocate<uint16_t>(count);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  for (size_t i = 0; i < count; ++i) values[i] = f32_to_bf16(uniform(random));
  return values;
}

struct Batch {
  uint16_t* x;     // [kTokens, kHidden] bf16
  int32_t* ids;    // [kTokens, kTopK]
  float* weights;  // [kTokens, kTopK]

  void fill(std::mt19937& random) const {
    for (size_t i = 0; i < kTokens * kHidden; ++i)
      x[i] = f32_to_bf16(static_cast<float>(random() % 2001) / 1e3f - 1.0f);
    for (size_t i = 0; i < kTokens * kTopK; ++i) ids[i] = static_cast<int32_t>(random() % kExperts);
    for (size_t i = 0; i < kTokens * kTopK; ++i) weights[i] = static_cast<float>(1 + random() % 8) / 8.0f;
  }
};

int run() {
  std::mt19937 random(1);
  const uint16_t* gate_up = random_bf16(kExperts * 2 * kInner * kHidden, random, 0.1f);
  const uint16_t* down = random_bf16(kExperts * kHidden * kInner, random, 0.1f);
  const Batch batch{allocate<uint16_t>(kTokens * kHidden), allocate<int32_t>(kTokens * kTopK),
                    allocate<float>(kTokens * kTopK)};
  uint16_t* out = allocate<uint16_t>(kTokens * kHidden);

  const moe::Layer layer({.hidden_size = kHidden, .intermediate_size = kInner, .num_experts = kExperts, .top_k = kTopK},
                         {gate_up, down}, {moe::Device::cuda});
  const size_t bytes = layer.workspace_bytes(kTokens);
  std::byte* workspace = allocate<std::byte>(bytes);
  const moe::LayerInputs inputs{batch.x, batch.ids, false, batch.weights, out, kTokens};

  cudaStream_t stream = nullptr;
  require(cudaStreamCreate(&stream));
  batch.fill(random);
  layer.run(inputs, workspace, bytes, stream);  // once before: a kernel's first use loads it
  require(cudaStreamSynchronize(stream));

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replayable = nullptr;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  layer.run(inputs, workspace, bytes, stream);  // enqueued into the graph, not run
  require(cudaStreamEndCapture(stream, &graph));
  require(cudaGraphInstantiate(&replayable, graph, 0));

  std::vector<uint16_t> before;
  for (int step = 0; step < 3; ++step) {
    batch.fill(random);
    require(cudaGraphLaunch(replayable, stream));  // reads the tokens and the routing that lie there now
    require(cudaStreamSynchronize(stream));
    const std::vector<uint16_t> replayed(out, out + kTokens * kHidden);

    layer.run(inputs, workspace, bytes, stream);
    require(cudaStreamSynchronize(stream));
    if (std::memcmp(replayed.data(), out, replayed.size() * sizeof(uint16_t)) != 0 || replayed == before)
      return std::puts("a replay is not what a call gives"), 1;
    before = replayed;
  }
  std::puts("3 replays of one graph, each with its own routing, have the bits of a plain call");
  return 0;
}

}  // namespace
#endif

int main() {
#ifdef TESSERA_HAVE_CUDA
  if (moe::device_available(moe::Device::cuda)) return run();
#endif
  std::puts("no Hopper GPU or no CUDA in this build: nothing to capture");
}
