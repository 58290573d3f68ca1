// One layer of a checkpoint on disk, run on the CPU: 05_load_layer FOLDER [LAYER]. Without arguments a small checkpoint
// of this repository. On a GPU the same with `.placement = {.device = Device::cuda}` and pointers to its memory.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "tessera/checkpoint/load_layer.h"
#include "tessera/core/dtype.h"

using namespace tessera;

int main(int argc, char** argv) {
  try {
    const checkpoint::Checkpoint model(argc > 1 ? argv[1] : "examples/data/tiny-qwen3-moe");
    const checkpoint::LoadedLayer loaded(model, {.layer = argc > 2 ? std::atoi(argv[2]) : 0, .dtype = DType::bf16});
    const moe::LayerConfig& config = loaded.layer().config();

    constexpr int kTokens = 4;  // all of them 0.5, and all choose the first experts with equal weights
    const auto slots = static_cast<size_t>(kTokens * config.top_k);
    std::vector<uint16_t> x(static_cast<size_t>(kTokens * config.hidden_size), f32_to_bf16(0.5f)), out(x.size());
    std::vector<int32_t> ids(slots);
    for (size_t i = 0; i < slots; ++i) ids[i] = static_cast<int32_t>(i) % config.top_k;
    const std::vector<float> weights(slots, 1.0f / static_cast<float>(config.top_k));
    std::vector<std::byte> workspace(loaded.layer().workspace_bytes(kTokens));
    loaded.layer().run({x.data(), ids.data(), false, weights.data(), out.data(), kTokens}, workspace.data(),
                       workspace.size());

    std::printf("%s, %s: out[0][0] = %.4f\n", model.model().family.c_str(), loaded.report().stored.c_str(),
                static_cast<double>(bf16_to_f32(out[0])));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
