// A program of somebody else that uses all three layers: package/ builds it against the installed package,
// subdirectory/ with Tessera as a part of its own build. It trusts nothing: every result is compared with plain loops,
// or with what the sentences plainly say.
//
//   program DIRECTORY     a classifier's checkpoint, such as models/movie-reviews
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "tessera/batching/launch.h"
#include "tessera/classifier/classifier.h"
#include "tessera/core/error.h"
#include "tessera/moe/layer.h"

namespace {

// ---- batching: rows of unequal length, summed in one launch
// ----------------------------------------------------------

struct SumRows {
  struct Params {
    const std::vector<std::vector<int64_t>>& rows;
    std::vector<std::vector<int64_t>>& partial_sums;  // [rows][tiles of the row]
  };
  static constexpr size_t kTileSize = 64;

  static int32_t num_tasks(const Params& params) { return static_cast<int32_t>(params.rows.size()); }
  static int32_t num_tiles(const Params& params, int32_t task) {
    return tessera::batching::ceil_div(static_cast<int64_t>(params.rows[static_cast<size_t>(task)].size()), kTileSize);
  }
  static void run_tile(const Params& params, tessera::batching::TileCoord tile, int /*worker*/) {
    const auto task = static_cast<size_t>(tile.task_idx), tile_idx = static_cast<size_t>(tile.tile_idx);
    const std::vector<int64_t>& row = params.rows[task];
    const size_t end = std::min(row.size(), (tile_idx + 1) * kTileSize);
    for (size_t i = tile_idx * kTileSize; i < end; ++i) params.partial_sums[task][tile_idx] += row[i];
  }
};

bool check_batching() {
  std::vector<std::vector<int64_t>> rows, partial_sums;
  for (const size_t length : {1000u, 0u, 3u, 64u, 65u}) {
    rows.emplace_back(length);
    std::iota(rows.back().begin(), rows.back().end(), static_cast<int64_t>(rows.size()));
    partial_sums.emplace_back((length + SumRows::kTileSize - 1) / SumRows::kTileSize);
  }
  const SumRows::Params params{rows, partial_sums};
  const auto plan = tessera::batching::make_plan<SumRows>(params, tessera::batching::TaskOrder::heavy_first);
  tessera::ThreadPool pool(2);
  tessera::batching::launch<SumRows>(plan, params, pool);

  bool right = plan.num_tiles() == 16 + 0 + 1 + 1 + 2 && plan.task_order().size() == 4 && plan.locate(0).task_idx == 0;
  for (size_t row = 0; row < rows.size(); ++row) {
    int64_t expected = 0, sum = 0;
    for (const int64_t value : rows[row]) expected += value;
    for (const int64_t value : partial_sums[row]) sum += value;
    right = right && sum == expected;
  }
  std::printf("batching: %d tiles of %zu rows, %s\n", plan.num_tiles(), rows.size(), right ? "right" : "WRONG");
  return right;
}

// ---- moe: a small layer on the CPU
// -----------------------------------------------------------------------------------

constexpr size_t kTokens = 7, kHidden = 32, kInner = 16, kExperts = 5, kTopK = 2;

// 64-byte aligned, as the layer's arrays should be.
template <class T>
struct Aligned {
  explicit Aligned(size_t count) : values(new (std::align_val_t{64}) T[count]()), size(count) {}
  ~Aligned() { operator delete[](values, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;

  void fill_random() {
    for (size_t i = 0; i < size; ++i) values[i] = static_cast<T>(std::rand() % 2001 - 1000) / T{1000};
  }

  T* values;
  size_t size;
};

double dot(const float* a, const float* b) {
  double sum = 0;
  for (size_t i = 0; i < kHidden; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

bool check_moe() {
  Aligned<float> x(kTokens * kHidden), gate_up(kExperts * 2 * kInner * kHidden), down(kExperts * kHidden * kInner);
  Aligned<float> topk_weights(kTokens * kTopK), out(kTokens * kHidden);
  Aligned<int32_t> topk_ids(kTokens * kTopK);
  for (Aligned<float>* array : {&x, &gate_up, &down, &topk_weights}) array->fill_random();
  for (size_t slot = 0; slot < topk_ids.size; ++slot) topk_ids.values[slot] = static_cast<int32_t>(slot * 3 % kExperts);
  topk_ids.values[4] = -1;  // no expert: this slot adds nothing

  const tessera::moe::Layer layer({.hidden_size = kHidden,
                                   .intermediate_size = kInner,
                                   .num_experts = kExperts,
                                   .top_k = kTopK,
                                   .dtype = tessera::DType::f32},
                                  {.gate_up = gate_up.values, .down = down.values});
  Aligned<std::byte> workspace(layer.workspace_bytes(kTokens));
  layer.run({.x = x.values,
             .topk_ids = topk_ids.values,
             .topk_weights = topk_weights.values,
             .out = out.values,
             .num_tokens = kTokens},
            workspace.values, workspace.size);

  double largest_error = 0;
  for (size_t token = 0; token < kTokens; ++token) {
    double expected[kHidden] = {};
    for (size_t slot = token * kTopK; slot < (token + 1) * kTopK; ++slot) {
      if (topk_ids.values[slot] < 0) continue;
      const auto expert = static_cast<size_t>(topk_ids.values[slot]);
      for (size_t i = 0; i < kInner; ++i) {
        const float* gate_row = gate_up.values + (expert * 2 * kInner + i) * kHidden;
        const double gate = dot(gate_row, x.values + token * kHidden);
        const double up = dot(gate_row + kInner * kHidden, x.values + token * kHidden);
        const double inner = static_cast<double>(topk_weights.values[slot]) * up * gate / (1 + std::exp(-gate));
        for (size_t c = 0; c < kHidden; ++c) {
          expected[c] += inner * static_cast<double>(down.values[(expert * kHidden + c) * kInner + i]);
        }
      }
    }
    for (size_t c = 0; c < kHidden; ++c) {
      largest_error =
          std::max(largest_error, std::abs(static_cast<double>(out.values[token * kHidden + c]) - expected[c]));
    }
  }
  const bool right = largest_error < 1e-4;  // sums of 16 to 32 products of a few units, in fp32
  std::printf("moe: largest error %.1e, %s\n", largest_error, right ? "right" : "WRONG");
  return right;
}

// ---- classifier: a checkpoint and two sentences
// ----------------------------------------------------------------------

/// Ids of words that are separated by spaces, padded to the model's length.
std::vector<int32_t> encode(const tessera::classifier::Model& model, const std::string& sentence) {
  std::vector<int32_t> ids;
  std::istringstream words(sentence);
  for (std::string word; words >> word;) {
    const auto found = std::find(model.vocabulary.begin(), model.vocabulary.end(), word);
    ids.push_back(found == model.vocabulary.end() ? model.config.unknown_id
                                                  : static_cast<int32_t>(found - model.vocabulary.begin()));
  }
  ids.resize(static_cast<size_t>(model.config.sequence_length), model.config.pad_id);
  return ids;
}

bool check_classifier(const char* directory) {
  namespace classifier = tessera::classifier;
  const auto model = std::make_shared<const classifier::Model>(classifier::load_model(directory));
  const std::string sentences[] = {"a moving and funny film , beautifully acted .",
                                   "a dull , stupid mess : boring and far too long ."};
  const std::string expected[] = {"positive", "negative"};

  std::vector<int32_t> ids;
  for (const std::string& sentence : sentences) {
    const std::vector<int32_t> words = encode(*model, sentence);
    ids.insert(ids.end(), words.begin(), words.end());
  }
  const auto num_classes = static_cast<size_t>(model->config.num_classes);
  std::vector<float> logits(2 * num_classes);
  classifier::make_cpu_classifier(model, {.input = classifier::InputKind::ids})
      ->run({.num_sentences = 2, .ids = ids.data()}, {.logits = logits.data()});

  bool right = true;
  for (size_t i = 0; i < 2; ++i) {
    const float* row = logits.data() + i * num_classes;
    const auto label = static_cast<size_t>(std::max_element(row, row + num_classes) - row);
    right = right && model->config.class_names[label] == expected[i];
    std::printf("classifier: \"%s\" is %s\n", sentences[i].c_str(), model->config.class_names[label].c_str());
  }
  return right;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]), 2;
  try {
    const bool all_right[] = {check_batching(), check_moe(), check_classifier(argv[1])};
    return std::all_of(std::begin(all_right), std::end(all_right), [](bool right) { return right; }) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "program: %s\n", error.what());
    return 3;
  }
}
