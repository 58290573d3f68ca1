// endurance_layers COUNT FIRST: fuzzed layers of the CPU against the oracle, by the judge of every back end. Prints
// JSON.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>

#include "endurance/random_case.h"
#include "moe/judge.h"
#include "moe/layer_data.h"
#include "tessera/core/thread_pool.h"
#include "tessera/moe/cpu_layer.h"

namespace tessera::testing {
namespace {

// Rows are narrow here, and the limit of a row is that of wide ones: it grows as it does on a GPU. The bound of every
// element stays as it is.
constexpr Sums kNarrowSums{kCpuSums.accumulator_unit, kWgmmaSums.narrow_rows};

// Of few columns of the intermediate one may be all of a row: then its rounding, of 2^-8 or 2^-11, is every element's.
Sums sums_of(const LayerCase& c) {
  constexpr double kRoundingOfLimit = 1.3;
  Sums sums = kNarrowSums;
  if (c.intermediate < 64) sums.narrow_rows = std::max(sums.narrow_rows, kRoundingOfLimit * std::sqrt(c.hidden));
  return sums;
}

struct Counts {
  std::mutex mutex;
  std::vector<std::string> problems;  // guarded by mutex
  std::atomic<int64_t> fp8{0}, tokens{0}, elements{0}, differing_threads{0};
};

LayerCase case_of(uint64_t seed) {
  static constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
  const auto format = seed % 4 == 3 ? moe::WeightFormat::fp8_block : moe::WeightFormat::dense;
  return random_case(seed, format, kTypes[seed % 3]);
}

void run_one(uint64_t seed, Counts& counts) {
  const LayerCase c = case_of(seed);
  std::string problem;
  try {
    const LayerData data(c, seed);
    const std::vector<std::byte> out = data.run(1);
    problem = judge(c, out, data.reference(unit_of(c, kNarrowSums)), sums_of(c));
    if (problem.empty() && data.run(3) != out) problem = "other bits on three threads";
    counts.elements += int64_t{c.tokens} * c.hidden;
  } catch (const std::exception& error) {
    problem = std::string("ended by: ") + error.what();
  }
  counts.fp8 += c.format == moe::WeightFormat::fp8_block;
  counts.tokens += c.tokens;
  if (problem.empty()) return;
  std::ostringstream text;
  text << "seed " << seed << ": " << c << ": " << problem;
  const std::lock_guard lock(counts.mutex);
  counts.problems.push_back(text.str());
}

int run(int64_t count, uint64_t first) {
  Counts counts;
  ThreadPool threads(available_processors());
  threads.run(count, [&](int64_t i, int) { run_one(first + static_cast<uint64_t>(i), counts); });
  const size_t num_failed = counts.problems.size();
  counts.problems.resize(std::min<size_t>(num_failed, 10));
  const nlohmann::ordered_json row = {{"ok", num_failed == 0},
                                      {"layers", count},
                                      {"layers_fp8", counts.fp8.load()},
                                      {"tokens", counts.tokens.load()},
                                      {"elements", counts.elements.load()},
                                      {"failed", num_failed},
                                      {"problems", counts.problems}};
  std::printf("%s\n", row.dump().c_str());
  return num_failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace tessera::testing

int main(int argc, char** argv) {
  const int64_t count = argc > 1 ? std::atoll(argv[1]) : 2000;
  return tessera::testing::run(count, argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
}
