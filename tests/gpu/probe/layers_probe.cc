#include "gpu/probe/layers_probe.h"

#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "gpu/moe/exact_fuzz.h"
#include "tessera/core/error.h"
#include "unit/moe/exact_record.h"

namespace tessera::testing {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// The activation by its definition, in fp64.
double defined(const Activation& a, double gate, double up) {
  switch (a.kind) {
    case ActivationKind::silu: return gate * sigmoid(gate) * up;
    case ActivationKind::gelu_tanh:
      return gate * sigmoid(2.0 * 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)) * up;
    case ActivationKind::gelu_erf: return 0.5 * gate * std::erfc(-gate * 0.7071067811865476) * up;
    case ActivationKind::clamped_swiglu: break;
    default: return NAN;
  }
  const double limit = a.limit, g = std::min(gate, limit);
  return (std::clamp(up, -limit, limit) + a.beta) * g * sigmoid(a.alpha * g);
}

// How far two 16-bit numbers of one type lie apart, in numbers of the type.
int64_t steps_between(uint16_t x, uint16_t y) {
  const auto place = [](uint16_t bits) { return bits < 0x8000 ? int64_t{bits} : int64_t{0x8000} - bits; };
  return std::abs(place(x) - place(y));
}

// Of one activation and type: values, values whose rounding is not that of the definition, and the farthest of them.
struct Count {
  std::atomic<int64_t> values{0}, unequal{0}, farthest{0};
};

constexpr ActivationKind kKinds[] = {ActivationKind::silu, ActivationKind::gelu_tanh, ActivationKind::gelu_erf,
                                     ActivationKind::clamped_swiglu};
constexpr const char* kKindNames[] = {"SiLU", "GELU, tanh form", "GELU, erf form", "clamped SwiGLU"};
constexpr DType kDTypes[] = {DType::bf16, DType::f16};
using Counts = std::array<std::array<Count, 2>, std::size(kKinds)>;

void count_values(Counts& counts, const Activation& activation, const float* gate, const float* up, const float* h,
                  size_t count) {
  for (size_t kind = 0; kind < std::size(kKinds); ++kind) {
    if (kKinds[kind] != activation.kind) continue;
    for (size_t type = 0; type < 2; ++type) {
      int64_t values = 0, unequal = 0, farthest = 0;
      for (size_t i = 0; i < count; ++i) {
        const double exact = defined(activation, gate[i], up == nullptr ? 1.0 : double{up[i]});
        const uint16_t got = moe::rounded_bits(h[i], kDTypes[type]);
        const uint16_t expected = moe::rounded_bits(static_cast<float>(exact), kDTypes[type]);
        if (!std::isfinite(exact) || !std::isfinite(h[i])) continue;
        ++values;
        unequal += got != expected ? 1 : 0;
        farthest = std::max(farthest, steps_between(got, expected));
      }
      Count& total = counts[kind][type];
      total.values += values;
      total.unequal += unequal;
      for (int64_t seen = total.farthest; seen < farthest && !total.farthest.compare_exchange_weak(seen, farthest);) {
      }
    }
  }
}

nlohmann::ordered_json told(const char* name, const FuzzResult& result) {
  std::printf("%s: %lld layers, %lld elements, %lld differ\n", name, static_cast<long long>(result.layers),
              static_cast<long long>(result.elements), static_cast<long long>(result.differing));
  for (const std::string& problem : result.problems) std::printf("  %s\n", problem.c_str());
  return {{"layers", result.layers}, {"elements", result.elements}, {"differing", result.differing}};
}

nlohmann::ordered_json function_table(const Counts& counts) {
  auto rows = nlohmann::ordered_json::array();
  for (size_t kind = 0; kind < std::size(kKinds); ++kind) {
    for (size_t type = 0; type < 2; ++type) {
      const Count& count = counts[kind][type];
      char share[32];
      std::snprintf(
          share, sizeof share, "%.4f",
          count.values == 0 ? 0.0 : 100.0 * static_cast<double>(count.unequal) / static_cast<double>(count.values));
      rows.push_back(
          {kKindNames[kind], type == 0 ? "bf16" : "fp16", count.values.load(), share, count.farthest.load()});
      std::printf(
          "  %-16s %s: %lld values, %s %% another 16-bit number than the definition's, at most %lld steps away\n",
          kKindNames[kind], type == 0 ? "bf16" : "fp16", static_cast<long long>(count.values.load()), share,
          static_cast<long long>(count.farthest.load()));
    }
  }
  return {{"columns", {"activation", "type", "values", "another number, %", "at most, steps"}}, {"rows", rows}};
}

}  // namespace

nlohmann::ordered_json probe_layers(int count) {
  nlohmann::ordered_json json;
  json["exact_activations"] =
      told("layers with exact activations", fuzz_layers(1, count, ExactKinds::host, moe::exact_activation));
  DeviceActivation device;
  Counts counts{};
  const auto counting = [&](const Activation& activation, const float* gate, const float* up, float* h, size_t n) {
    device(activation, gate, up, h, n);
    count_values(counts, activation, gate, up, h, n);
  };
  json["device_activations"] =
      told("layers whose activation the device evaluates", fuzz_layers(1, count / 5, ExactKinds::any, counting));
  json["functions"] = function_table(counts);
  return json;
}

void record_layers(const std::string& path, const std::string& device_name) {
  ExactRunner runner;
  std::ofstream file(path);
  file << "# Outputs of small layers on an " << device_name
       << ", by gpu_exact_probe --record: seed, checksum of the inputs, bits.\n";
  int written = 0;
  for (uint64_t seed = 1; written < kNumRecordedLayers; ++seed) {
    const ExactCase c(seed);
    if (int64_t{c.num_tokens} * c.config.hidden_size > kMaxRecordedElements) continue;
    file << exact_record_line({seed, c.checksum(), runner.run(c).out});
    ++written;
  }
  if (!file.flush()) throw Error("--record", path, "a file that can be written");
  std::printf("recorded %d layers in %s\n", written, path.c_str());
}

}  // namespace tessera::testing
