// Random small layers on the GPU against the host model; what differs is named by its stage, row and column.
#pragma once

#include <algorithm>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "gpu/moe/device_activation.h"
#include "gpu/moe/exact_run.h"
#include "tessera/core/thread_pool.h"

namespace tessera::testing {

struct FuzzResult {
  int64_t layers = 0;
  int64_t elements = 0;               // of intermediates, rows and outputs
  int64_t differing = 0;              // of them, and of layers that wrote beside their results
  std::vector<std::string> problems;  // the first few
};

/// `count` layers, seeds from `first` on: the model's part by all processors, the GPU's one after the other.
inline FuzzResult fuzz_layers(uint64_t first, int count, ExactKinds kinds, const moe::ActivationFunction& activation) {
  constexpr int kAtOnce = 256;  // cases that threads prepare before the GPU runs them
  constexpr size_t kMaxProblems = 5;
  struct Prepared {
    std::unique_ptr<ExactCase> c;
    std::unique_ptr<moe::ExactLayer> layer;
    std::vector<uint16_t> intermediate, rows, out;
  };
  ThreadPool threads(available_processors());
  ExactRunner runner;
  FuzzResult result;
  const auto count_differing = [&](const std::vector<uint16_t>& got, const std::vector<uint16_t>& expected) {
    result.elements += static_cast<int64_t>(expected.size());
    for (size_t i = 0; i < expected.size(); ++i) result.differing += got[i] != expected[i] ? 1 : 0;
  };
  for (int begin = 0; begin < count; begin += kAtOnce) {
    std::vector<Prepared> prepared(static_cast<size_t>(std::min(kAtOnce, count - begin)));
    threads.run(static_cast<int64_t>(prepared.size()), [&](int64_t i, int) {
      Prepared& p = prepared[static_cast<size_t>(i)];
      p.c = std::make_unique<ExactCase>(first + static_cast<uint64_t>(begin + i), kinds);
      p.layer = std::make_unique<moe::ExactLayer>(p.c->config, p.c->weights(), p.c->inputs());
      p.intermediate = p.layer->intermediate(activation);
      p.rows = p.layer->rows(p.intermediate);
      p.out = p.layer->combined(p.rows);
    });
    for (const Prepared& p : prepared) {
      const DeviceAnswer got = runner.run(*p.c);
      const int64_t before = result.differing;
      count_differing(got.intermediate, p.intermediate);
      count_differing(got.rows, p.rows);
      count_differing(got.out, p.out);
      result.differing += got.problem.empty() ? 0 : 1;
      ++result.layers;
      if (result.differing == before || result.problems.size() == kMaxProblems) continue;
      std::ostringstream text;
      text << *p.c << ": " << problem_of(*p.c, got, *p.layer, p.intermediate);
      result.problems.push_back(text.str());
    }
  }
  return result;
}

}  // namespace tessera::testing
