// The same launch a thousand times, beside other work that comes and goes, and for minutes: the same bits, and the same
// memory free afterwards.
#include <chrono>
#include <random>

#include "endurance/gpu/repeated_layer.h"
#include "endurance/gpu/rows.h"

namespace tessera::testing {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kStreams = 3;

size_t free_bytes() {
  size_t free = 0, all = 0;
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  TESSERA_CUDA_CHECK(cudaMemGetInfo(&free, &all));
  return free;
}

/// Work of another stream that takes part of the device for a while; and a delay of the stream itself.
void disturb(std::mt19937_64& random, const cuda::Stream& own, const cuda::Stream& other) {
  const int kind = static_cast<int>(random() % 4);
  const auto nanoseconds = static_cast<int64_t>(random() % 60'000);
  if (kind == 0) spin(1, nanoseconds, own.get());
  if (kind == 1) spin(static_cast<int>(1 + random() % 120), nanoseconds, other.get());
}

}  // namespace

std::vector<LayerCase> repeated_cases() {
  using moe::WeightFormat;
  std::vector<LayerCase> cases = {
      {.hidden = 256, .intermediate = 512, .experts = 16, .top_k = 2, .tokens = 513, .dtype = DType::bf16},
      {.hidden = 264, .intermediate = 136, .experts = 60, .top_k = 4, .tokens = 300, .dtype = DType::f16},
      {.hidden = 512, .intermediate = 256, .experts = 8, .top_k = 2, .tokens = 1, .dtype = DType::bf16},
      {.hidden = 512, .intermediate = 256, .experts = 32, .top_k = 8, .tokens = 16, .dtype = DType::f16},
      {.hidden = 128, .intermediate = 128, .experts = 300, .top_k = 6, .tokens = 700, .routing = "zipf"},
      {.hidden = 192, .intermediate = 64, .experts = 8, .top_k = 2, .tokens = 1024, .routing = "worst"},
      {.hidden = 256, .intermediate = 256, .experts = 8, .tokens = 257, .routing = "foreign", .dtype = DType::f16},
      {.hidden = 72, .intermediate = 200, .experts = 12, .tokens = 127, .gated = false, .bias = true},
      {.hidden = 256, .intermediate = 128, .tokens = 400, .shared_intermediate = 256, .shared_weight = true},
      {.hidden = 512, .intermediate = 256, .experts = 16, .top_k = 4, .tokens = 600, .format = WeightFormat::fp8_block},
      {.hidden = 512, .intermediate = 256, .experts = 16, .top_k = 4, .tokens = 8, .format = WeightFormat::fp8_block},
      {.hidden = 272, .intermediate = 144, .tokens = 333, .dtype = DType::f16, .format = WeightFormat::fp8_block},
  };
  return cases;
}

Row equal_launches(const GpuEndurance& options) {
  Row problems = Row::array();
  unsigned long long differing = 0;
  int64_t num_launches = 0;
  std::mt19937_64 random(11);
  const cuda::Stream streams[kStreams], other;
  const std::vector<LayerCase> cases = repeated_cases();
  for (const LayerCase& c : cases) {
    // One layer a stream, so that three runs are under way at once.
    std::vector<std::unique_ptr<RepeatedLayer>> layers;
    for (int i = 0; i < kStreams; ++i) layers.push_back(std::make_unique<RepeatedLayer>(c));
    for (int launch = 0; launch < options.launches; ++launch) {
      const auto which = static_cast<size_t>(launch % kStreams);
      disturb(random, streams[which], other);
      layers[which]->enqueue(streams[which].get());
      ++num_launches;
    }
    std::ostringstream name;
    name << c;
    for (const auto& layer : layers) {
      const unsigned long long count = layer->differing();
      differing += count;
      if (count != 0) problems.push_back(name.str() + ": " + std::to_string(count) + " bytes differ");
      if (!layer->problem().empty()) problems.push_back(name.str() + ": " + layer->problem());
      if (!layer->guards_intact()) problems.push_back(name.str() + ": written beside its results");
    }
  }
  // The comparison sees one byte.
  RepeatedLayer planted(cases[0]);
  planted.spoil();
  planted.enqueue(streams[0].get());
  const bool sees = planted.differing() == 1;
  if (!sees) problems.push_back("a planted byte was not seen");
  return {{"ok", problems.empty()},       {"configurations", cases.size()}, {"launches", num_launches},
          {"differing_bytes", differing}, {"planted_byte_seen", sees},      {"problems", problems}};
}

Row soak(const GpuEndurance& options) {
  Row problems = Row::array();
  std::mt19937_64 random(12);
  const cuda::Stream streams[kStreams], other;
  std::vector<std::unique_ptr<RepeatedLayer>> layers;
  for (const LayerCase& c : repeated_cases()) layers.push_back(std::make_unique<RepeatedLayer>(c));
  const auto round = [&] {
    for (size_t i = 0; i < layers.size(); ++i) {
      const cuda::Stream& stream = streams[i % kStreams];
      disturb(random, stream, other);
      layers[i]->enqueue(stream.get());
    }
  };
  const auto fresh = [&](size_t i) {  // made and given back, beside those that stay
    RepeatedLayer layer(repeated_cases()[i % layers.size()]);
    layer.enqueue(nullptr);
    if (layer.differing() != 0) problems.push_back("a fresh layer differs from itself");
  };
  for (size_t i = 0; i < 2 * layers.size(); ++i) {
    round();
    fresh(i);
  }
  const size_t before = free_bytes();
  const Clock::time_point begin = Clock::now();
  const Clock::time_point end = begin + std::chrono::seconds(options.soak_seconds);
  int64_t num_rounds = 0;
  size_t least = before;
  while (Clock::now() < end) {
    for (int i = 0; i < 50; ++i) round();
    num_rounds += 50;
    fresh(static_cast<size_t>(num_rounds / 50));
    least = std::min(least, free_bytes());
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const auto drift = static_cast<int64_t>(before) - static_cast<int64_t>(free_bytes());
  unsigned long long differing = 0;
  for (const auto& layer : layers) {
    differing += layer->differing();
    if (!layer->guards_intact()) problems.push_back("written beside its results");
  }
  constexpr int64_t kMaxDrift = int64_t{2} << 20;
  if (differing != 0) problems.push_back("bits differ");
  if (drift > kMaxDrift) problems.push_back("free memory shrank by " + std::to_string(drift) + " bytes");
  return {{"ok", problems.empty()},
          {"seconds", seconds},
          {"launches", num_rounds * static_cast<int64_t>(layers.size())},
          {"differing_bytes", differing},
          {"free_memory_drift_bytes", drift},
          {"least_free_below_start_bytes", static_cast<int64_t>(before) - static_cast<int64_t>(least)},
          {"problems", problems}};
}

}  // namespace tessera::testing
