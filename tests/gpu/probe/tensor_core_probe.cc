#include "gpu/probe/tensor_core_probe.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "gpu/probe/device_products.h"
#include "gpu/probe/operand_classes.h"
#include "moe/judge/tensor_core.h"

namespace tessera::testing {
namespace {

using moe::OperandRows;
using moe::TensorCoreRules;
using moe::TensorCoreType;

constexpr TensorCoreType kTypes[] = {TensorCoreType::bf16, TensorCoreType::f16, TensorCoreType::e4m3};
constexpr int kSampledRows = 40;      // of either matrix, for the other arithmetics
constexpr int kSampledSteps = 4;      // longer sums are not sampled
constexpr int kShownDifferences = 4;  // of a row of the table

struct Alternative {
  const char* name;
  std::function<void(TensorCoreRules&)> apply;
};

const std::vector<Alternative>& alternatives() {
  static const std::vector<Alternative> kAlternatives = {
      {"zero products count", [](TensorCoreRules& r) { r.zeros_count = true; }},
      {"subnormal operands renormalised", [](TensorCoreRules& r) { r.operands_renormalised = true; }},
      {"subnormal C renormalised", [](TensorCoreRules& r) { r.sum_renormalised = true; }},
      {"terms cut toward minus infinity", [](TensorCoreRules& r) { r.floored = true; }},
      {"result to nearest", [](TensorCoreRules& r) { r.nearest = true; }},
      {"overflow to the largest number", [](TensorCoreRules& r) { r.overflows_to_infinity = false; }},
      {"subnormal results flushed", [](TensorCoreRules& r) { r.flushes_results = true; }},
      {"aligned to 2^-126 at least", [](TensorCoreRules& r) { r.least_top = -126; }},
      {"aligned so that 2^-149 is the last bit", [](TensorCoreRules& r) { r.least_top = -149 + r.term_bits; }},
      {"aligned to 2^-132 at least", [](TensorCoreRules& r) { r.least_top = -132; }},
      {"aligned to 2^-134 at least", [](TensorCoreRules& r) { r.least_top = -134; }},
      {"aligned to the largest, however small", [](TensorCoreRules& r) { r.least_top = -1000; }},
      {"subnormal results with as many bits", [](TensorCoreRules& r) { r.least_bit = -126 - r.result_bits; }},
      {"what is cut to zero keeps its sign", [](TensorCoreRules& r) { r.zero_sign = moe::ZeroSign::cut; }},
      {"sums of -0 are -0", [](TensorCoreRules& r) { r.zero_sign = moe::ZeroSign::ieee; }},
      {"NaN is 0x7FC00000", [](TensorCoreRules& r) { r.nan_bits = 0x7FC00000u; }},
      {"one term bit fewer", [](TensorCoreRules& r) { --r.term_bits; }},
      {"one term bit more", [](TensorCoreRules& r) { ++r.term_bits; }},
      {"half as many products at once", [](TensorCoreRules& r) { r.num_products /= 2; }},
  };
  return kAlternatives;
}

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

// The matrices of one class, type and depth, on both machines.
class Subject {
 public:
  Subject(const OperandClass& operand_class, TensorCoreType type, int num_steps)
      : name_(operand_class.name),
        type_(type),
        num_steps_(num_steps),
        depth_(int64_t{num_steps} * moe::tensor_core_rules(type).num_products),
        operands_(operand_class.make(type, kProbeRows, depth_, 1000u + static_cast<uint32_t>(num_steps))),
        a_(bytes_of(operands_.a)),
        b_(bytes_of(operands_.b)) {}

  int64_t depth() const { return depth_; }
  int num_steps() const { return num_steps_; }
  TensorCoreType type() const { return type_; }

  std::vector<std::vector<float>> on_device() const {
    DeviceProducts device(type_, a_, b_);
    std::vector<std::vector<float>> results;
    for (const int columns : kProbeColumns) {
      for (const bool swapped : {false, true}) {
        for (const FirstOperand first : {FirstOperand::shared_memory, FirstOperand::registers})
          results.push_back(device.run({columns, swapped, first}, num_steps_, operands_.start));
      }
    }
    return results;
  }

  std::vector<float> by_model(ThreadPool& threads) const {
    std::vector<float> out = start(kProbeRows, 1);
    constexpr int kRowsAnItem = 16;
    const TensorCoreRules rules = moe::tensor_core_rules(type_);
    threads.run(kProbeRows / kRowsAnItem, [&](int64_t item, int) {
      OperandRows rows = operand(a_);
      rows.data = a_.data() + item * kRowsAnItem * row_bytes();
      rows.num_rows = kRowsAnItem;
      moe::products(rules, rows, operand(b_), depth_, out.data() + item * kRowsAnItem * kProbeRows, kProbeRows,
                    !operands_.start.empty());
    });
    return out;
  }

  // How many of the sampled elements these rules get wrong.
  int64_t sampled_errors(const TensorCoreRules& rules, const std::vector<float>& device) const {
    constexpr int kStep = kProbeRows / kSampledRows;
    std::vector<int32_t> numbers;
    for (int i = 0; i < kSampledRows; ++i) numbers.push_back(i * kStep + i % kStep);
    OperandRows rows = operand(a_), columns = operand(b_);
    rows.num_rows = columns.num_rows = kSampledRows;
    rows.numbers = columns.numbers = numbers.data();
    std::vector<float> out(static_cast<size_t>(kSampledRows) * kSampledRows);
    const auto place = [&](size_t i) {
      return static_cast<size_t>(numbers[i / kSampledRows]) * kProbeRows +
             static_cast<size_t>(numbers[i % kSampledRows]);
    };
    const bool given = !operands_.start.empty();
    for (size_t i = 0; given && i < out.size(); ++i) out[i] = operands_.start[place(i)];
    moe::products(rules, rows, columns, depth_, out.data(), kSampledRows, given);
    int64_t wrong = 0;
    for (size_t i = 0; i < out.size(); ++i) wrong += bits_of(out[i]) != bits_of(device[place(i)]) ? 1 : 0;
    return wrong;
  }

  // The element's operands, step by step, where they are few.
  void show(size_t element, float device, float model) const {
    const size_t i = element / kProbeRows, j = element % kProbeRows;
    std::printf("    %s %.*s K=%lld [%zu, %zu]: device %08X (%a), model %08X (%a)", name_.c_str(),
                static_cast<int>(moe::tensor_core_type_name(type_).size()), moe::tensor_core_type_name(type_).data(),
                static_cast<long long>(depth_), i, j, bits_of(device), static_cast<double>(device), bits_of(model),
                static_cast<double>(model));
    if (!operands_.start.empty()) std::printf(", from C %08X", bits_of(operands_.start[element]));
    std::printf("\n");
    if (num_steps_ > 4) return;
    for (const auto* values : {&operands_.a, &operands_.b}) {
      const size_t row = values == &operands_.a ? i : j;
      std::printf("      %c", values == &operands_.a ? 'a' : 'b');
      for (int64_t k = 0; k < depth_; ++k)
        std::printf(" %04X", (*values)[row * static_cast<size_t>(depth_) + static_cast<size_t>(k)]);
      std::printf("\n");
    }
  }

 private:
  int64_t row_bytes() const {
    const int64_t used = int64_t{num_steps_} * 32;
    return (used + kProbeRowBytes - 1) / kProbeRowBytes * kProbeRowBytes;
  }
  int64_t element_bytes() const { return type_ == TensorCoreType::e4m3 ? 1 : 2; }
  // [256][row_bytes]; what lies beyond the row's elements is NaN: no instruction may look there.
  std::vector<uint8_t> bytes_of(const std::vector<uint16_t>& patterns) const {
    std::vector<uint8_t> bytes(static_cast<size_t>(kProbeRows * row_bytes()), 0xFF);
    for (int64_t row = 0; row < kProbeRows; ++row) {
      for (int64_t k = 0; k < depth_; ++k) {
        const uint16_t pattern = patterns[static_cast<size_t>(row * depth_ + k)];
        uint8_t* place = &bytes[static_cast<size_t>(row * row_bytes() + k * element_bytes())];
        place[0] = static_cast<uint8_t>(pattern);
        if (element_bytes() == 2) place[1] = static_cast<uint8_t>(pattern >> 8);
      }
    }
    return bytes;
  }
  OperandRows operand(const std::vector<uint8_t>& bytes) const {
    return {bytes.data(), kProbeRows, row_bytes() / element_bytes(), nullptr};
  }
  std::vector<float> start(int rows, int) const {
    if (!operands_.start.empty()) return operands_.start;
    return std::vector<float>(static_cast<size_t>(rows) * kProbeRows);
  }

  std::string name_;
  TensorCoreType type_;
  int num_steps_;
  int64_t depth_;
  ProbeOperands operands_;
  std::vector<uint8_t> a_, b_;
};

struct Sample {
  std::string name;
  Subject subject;
  std::vector<float> device;
};

int64_t errors_of(const TensorCoreRules& rules, const std::vector<const Sample*>& samples, ThreadPool& threads) {
  std::atomic<int64_t> wrong{0};
  threads.run(static_cast<int64_t>(samples.size()), [&](int64_t i, int) {
    const Sample& sample = *samples[static_cast<size_t>(i)];
    wrong += sample.subject.sampled_errors(rules, sample.device);
  });
  return wrong;
}

// Which changes of the model, one after the other, bring it nearest to the device.
void search(TensorCoreType type, const std::vector<const Sample*>& samples, ThreadPool& threads,
            nlohmann::ordered_json& json) {
  const std::string name(moe::tensor_core_type_name(type));
  TensorCoreRules rules = moe::tensor_core_rules(type);
  int64_t best = errors_of(rules, samples, threads);
  auto& found = json["search"][name] = {{"model", best}, {"changes", nlohmann::ordered_json::array()}};
  std::printf("%s: the model gets %lld sampled elements wrong\n", name.c_str(), static_cast<long long>(best));
  while (best > 0) {
    const Alternative* chosen = nullptr;
    for (const Alternative& alternative : alternatives()) {
      TensorCoreRules other = rules;
      alternative.apply(other);
      const int64_t wrong = errors_of(other, samples, threads);
      if (wrong < best) {
        best = wrong;
        chosen = &alternative;
      }
    }
    if (chosen == nullptr) break;
    chosen->apply(rules);
    found["changes"].push_back({{"change", chosen->name}, {"differing", best}});
    std::printf("  with \"%s\": %lld\n", chosen->name, static_cast<long long>(best));
  }
}

// Sampled errors of every other arithmetic, by class: 0 everywhere would mean that no class tells the two apart.
void compare_alternatives(const std::vector<Sample>& samples, ThreadPool& threads, nlohmann::ordered_json& json) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  std::printf("\nother arithmetics: sampled elements they get wrong (bf16, f16, e4m3), and the classes that show it\n");
  for (const Alternative& alternative : alternatives()) {
    auto row = nlohmann::ordered_json::array({alternative.name});
    std::string classes;
    std::printf("  %-40s", alternative.name);
    for (const TensorCoreType type : kTypes) {
      TensorCoreRules rules = moe::tensor_core_rules(type);
      alternative.apply(rules);
      std::vector<int64_t> wrong(samples.size());
      threads.run(static_cast<int64_t>(samples.size()), [&](int64_t i, int) {
        const Sample& sample = samples[static_cast<size_t>(i)];
        if (sample.subject.type() == type)
          wrong[static_cast<size_t>(i)] = sample.subject.sampled_errors(rules, sample.device);
      });
      int64_t total = 0;
      for (size_t i = 0; i < samples.size(); ++i) {
        total += wrong[i];
        if (wrong[i] > 0 && classes.find(samples[i].name) == std::string::npos)
          classes += (classes.empty() ? "" : ", ") + samples[i].name;
      }
      std::printf(" %7lld", static_cast<long long>(total));
      row.push_back(total);
    }
    std::printf("  %s\n", classes.c_str());
    json["shown_by"][alternative.name] = classes;
    rows.push_back(row);
  }
  json["alternatives"] = {{"columns", {"another arithmetic", "bf16", "f16", "e4m3"}}, {"rows", rows}};
}

struct Totals {
  int64_t elements = 0, differing = 0, comparisons = 0, shapes_differ = 0;
};

// One line of the table.
void probe_one(const OperandClass& operand_class, const Subject& subject, ThreadPool& threads,
               std::vector<Sample>& samples, Totals& totals, nlohmann::ordered_json& rows) {
  const std::vector<std::vector<float>> device = subject.on_device();
  const std::vector<float> model = subject.by_model(threads);
  std::vector<size_t> different;
  int64_t differing = 0, shapes_differ = 0;
  for (size_t shape = 0; shape < device.size(); ++shape) {
    for (size_t i = 0; i < model.size(); ++i) {
      shapes_differ += bits_of(device[shape][i]) != bits_of(device[0][i]) ? 1 : 0;
      if (bits_of(device[shape][i]) == bits_of(model[i])) continue;
      ++differing;
      if (shape == 0 && different.size() < kShownDifferences) different.push_back(i);
    }
  }
  const auto elements = static_cast<int64_t>(model.size() * device.size());
  const std::string type(moe::tensor_core_type_name(subject.type()));
  std::printf("%-20s %-5s %6lld %10lld %10lld %s\n", operand_class.name.c_str(), type.c_str(),
              static_cast<long long>(subject.depth()), static_cast<long long>(elements),
              static_cast<long long>(differing),
              shapes_differ == 0 ? "" : ("shapes disagree in " + std::to_string(shapes_differ)).c_str());
  for (const size_t i : different) subject.show(i, device[0][i], model[i]);
  rows.push_back({{"class", operand_class.name},
                  {"type", type},
                  {"K", subject.depth()},
                  {"elements", elements},
                  {"differing", differing},
                  {"shapes_differing", shapes_differ}});
  totals.elements += elements;
  totals.differing += differing;
  totals.shapes_differ += shapes_differ;
  ++totals.comparisons;
  if (subject.num_steps() <= kSampledSteps) samples.push_back({operand_class.name, subject, device[0]});
}

// class | elements | differing of each type, for the documents.
nlohmann::ordered_json class_table(const nlohmann::ordered_json& rows) {
  nlohmann::ordered_json table = nlohmann::ordered_json::array();
  for (const OperandClass& operand_class : operand_classes()) {
    int64_t elements = 0, longest = 0, differing[3] = {};
    for (const auto& row : rows) {
      if (row["class"] != operand_class.name) continue;
      elements += row["elements"].get<int64_t>();
      longest = std::max(longest, row["K"].get<int64_t>());
      for (size_t i = 0; i < 3; ++i) {
        if (row["type"] == moe::tensor_core_type_name(kTypes[i])) differing[i] += row["differing"].get<int64_t>();
      }
    }
    table.push_back(
        {operand_class.name, operand_class.why, longest, elements, differing[0], differing[1], differing[2]});
  }
  return {
      {"columns", {"operands", "what they show", "K up to", "elements", "bf16 differ", "f16 differ", "e4m3 differ"}},
      {"rows", table}};
}

// Where an element differs, for the documents: "underflow (bf16), zeros (f16)", or "none".
std::string differing_classes(const nlohmann::ordered_json& rows) {
  std::string names;
  for (const auto& row : rows) {
    if (row["differing"] == 0) continue;
    const std::string name = row["class"].get<std::string>() + " (" + row["type"].get<std::string>() + ")";
    if (names.find(name) == std::string::npos) names += (names.empty() ? "" : ", ") + name;
  }
  return names.empty() ? "none" : names;
}

}  // namespace

nlohmann::ordered_json probe_tensor_cores(ThreadPool& threads) {
  nlohmann::ordered_json json, rows = nlohmann::ordered_json::array();
  std::vector<Sample> samples;
  Totals totals;
  std::printf("%-20s %-5s %6s %10s %10s\n", "class", "type", "K", "elements", "differing");
  for (const OperandClass& operand_class : operand_classes()) {
    for (const TensorCoreType type : kTypes) {
      for (const int num_steps : operand_class.depths)
        probe_one(operand_class, Subject(operand_class, type, num_steps), threads, samples, totals, rows);
    }
  }
  std::printf("in all: %lld elements, %lld differ; %lld differ between shapes\n",
              static_cast<long long>(totals.elements), static_cast<long long>(totals.differing),
              static_cast<long long>(totals.shapes_differ));
  json["elements"] = totals.elements;
  json["differing"] = totals.differing;
  json["shapes_differing"] = totals.shapes_differ;
  json["differing_in"] = differing_classes(rows);
  json["N"] = kProbeColumns;
  json["widths"] = std::size(kProbeColumns);
  json["orientations"] = 2;
  json["first_operand_in"] = "shared memory and registers";
  json["table"] = class_table(rows);
  json["rows"] = rows;
  compare_alternatives(samples, threads, json);
  for (const TensorCoreType type : kTypes) {
    std::vector<const Sample*> of_type;
    for (const Sample& sample : samples) {
      if (sample.subject.type() == type) of_type.push_back(&sample);
    }
    search(type, of_type, threads, json);
  }
  return json;
}

}  // namespace tessera::testing
