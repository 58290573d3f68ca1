// Fuzzed layers: of 16-bit weights by the cases that the suite moe has, of e4m3 by random_case.h; all bit for bit
// against the host model.
#include <algorithm>
#include <memory>

#include "endurance/gpu/rows.h"
#include "endurance/random_case.h"
#include "gpu/moe/device_activation.h"
#include "gpu/moe/exact_fuzz.h"
#include "gpu/moe/gpu_fixture.h"
#include "moe/judge/exact_layer.h"
#include "tessera/core/thread_pool.h"

namespace tessera::testing {

namespace {

constexpr int kAtOnce = 128;
constexpr size_t kMaxProblems = 5;

/// Layers with e4m3 weights; every fifth of all.
void fuzz_fp8(int count, FuzzResult& result) {
  DeviceActivation activation;
  ThreadPool threads(available_processors());
  struct Prepared {
    std::unique_ptr<LayerData> data;
    std::vector<uint16_t> expected;
  };
  for (int begin = 0; begin < count; begin += kAtOnce) {
    std::vector<Prepared> prepared(static_cast<size_t>(std::min(kAtOnce, count - begin)));
    threads.run(static_cast<int64_t>(prepared.size()), [&](int64_t i, int) {
      const uint64_t seed = static_cast<uint64_t>(begin + i) + 1;
      Prepared& p = prepared[static_cast<size_t>(i)];
      p.data = std::make_unique<LayerData>(
          random_case(seed, moe::WeightFormat::fp8_block, seed % 2 == 0 ? DType::bf16 : DType::f16), seed);
      const moe::ExactLayer layer(p.data->config(), p.data->weights(), p.data->inputs());
      p.expected = layer.out(is_exact_on_host(p.data->layer_case()) ? moe::exact_activation : activation.function());
    });
    for (const Prepared& p : prepared) {
      const std::vector<uint16_t> got = LayerRun(*p.data).run();
      ++result.layers;
      result.elements += static_cast<int64_t>(p.expected.size());
      const std::string difference = difference_of("out", got, p.expected, p.data->layer_case().hidden);
      if (difference.empty()) continue;
      ++result.differing;
      std::ostringstream text;
      text << p.data->layer_case() << ": " << difference;
      if (result.problems.size() < kMaxProblems) result.problems.push_back(text.str());
    }
  }
}

}  // namespace

Row fuzzed_layers(const GpuEndurance& options) {
  const int num_fp8 = options.layers / 5, num_any = options.layers / 5;
  const int num_host = options.layers - num_fp8 - num_any;
  FuzzResult all = fuzz_layers(100'001, num_host, ExactKinds::host, moe::exact_activation);
  {
    DeviceActivation activation;
    const FuzzResult any = fuzz_layers(200'001, num_any, ExactKinds::any, activation.function());
    all.layers += any.layers;
    all.elements += any.elements;
    all.differing += any.differing;
    all.problems.insert(all.problems.end(), any.problems.begin(), any.problems.end());
  }
  fuzz_fp8(num_fp8, all);
  return {{"ok", all.layers == options.layers && all.differing == 0},
          {"layers", all.layers},
          {"layers_fp8", num_fp8},
          {"elements", all.elements},
          {"differing", all.differing},
          {"problems", all.problems}};
}

}  // namespace tessera::testing
