// Router weights and the weighted sum of experts against fp64.
#include "cuda/kernels/mixture/launch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "gpu/classifier/operand_buffer.h"

namespace tessera::testing {
namespace {

namespace mixture = kernels::mixture;

constexpr Operand kKinds[] = {Operand::f16, Operand::bf16, Operand::split, Operand::f32};

std::vector<float> normal_values(size_t count, float scale, std::mt19937& rng) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(rng);
  return values;
}

struct WeighCase {
  Operand kind = Operand::f16;
  int32_t records = 5;
  int32_t features = 100;
  int32_t experts = 4;
  float threshold = 0.0f;
  bool with_ids = true;
  bool unaligned_weight = false;  // 4-byte aligned only

  friend std::ostream& operator<<(std::ostream& out, const WeighCase& c) {
    return out << operand_name(c.kind) << " N " << c.records << " D " << c.features << " E " << c.experts
               << " threshold " << c.threshold << (c.unaligned_weight ? " unaligned" : "");
  }
};

class WeighRun {
 public:
  explicit WeighRun(const WeighCase& c, uint32_t seed = 1)
      : case_(c),
        h_(c.kind, c.records, c.features, cta::padded_stride(c.features)),
        weight_(static_cast<size_t>(c.experts) * static_cast<size_t>(c.features) + 1),
        device_weight_(weight_.size() * sizeof(float)),
        device_bias_(static_cast<size_t>(c.experts) * sizeof(float)),
        device_router_weights_(outputs() * sizeof(float)),
        device_ids_(outputs() * sizeof(int32_t)) {
    std::mt19937 rng(seed);
    weight_ = normal_values(weight_.size(), 1.5f / std::sqrt(static_cast<float>(c.features)), rng);
    bias_ = normal_values(static_cast<size_t>(c.experts), 0.5f, rng);
    h_values_ = normal_values(static_cast<size_t>(c.records) * static_cast<size_t>(c.features), 1.0f, rng);
    h_.upload(h_values_, /*pad=*/false);  // the padding stays NaN: it must not matter
    device_weight_.upload(weight_);
    device_bias_.upload(bias_);
  }

  mixture::WeighArgs args() const {
    mixture::WeighArgs args{};
    args.h = h_.view();
    args.weight = static_cast<const float*>(device_weight_.data()) + (case_.unaligned_weight ? 1 : 0);
    args.bias = static_cast<const float*>(device_bias_.data());
    args.router_weights = static_cast<float*>(device_router_weights_.data());
    args.threshold = case_.threshold;
    args.topk_ids = case_.with_ids ? static_cast<int32_t*>(device_ids_.data()) : nullptr;
    args.num_records = case_.records;
    args.num_features = case_.features;
    args.num_experts = case_.experts;
    return args;
  }

  void run() {
    device_router_weights_.poison();
    device_ids_.poison();
    mixture::weigh(args(), nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    EXPECT_TRUE(device_router_weights_.guards_intact() && device_ids_.guards_intact()) << case_;
    weights = device_router_weights_.download<float>(outputs());
    ids = device_ids_.download<int32_t>(outputs());
  }

  /// The router weights of a record in fp64; `dropped_feature` is left out of the products.
  std::vector<double> expected(int32_t record, int32_t dropped_feature = -1) const {
    std::vector<double> powers;
    double total = 0.0;
    for (int32_t e = 0; e < case_.experts; ++e) {
      double logit = bias_[static_cast<size_t>(e)];
      for (int32_t i = 0; i < case_.features; ++i) {
        const size_t first = case_.unaligned_weight ? 1 : 0;
        const double w = weight_[first + static_cast<size_t>(e * case_.features + i)];
        if (i != dropped_feature) logit += h_.value(record, i) * w;
      }
      powers.push_back(std::exp(logit));
      total += powers.back();
    }
    for (double& power : powers) power /= total;
    return powers;
  }

  /// What is wrong with weights and ids; empty when nothing is.
  std::string problem(int32_t dropped_feature = -1) const {
    for (int32_t record = 0; record < case_.records; ++record) {
      const std::vector<double> right = expected(record, dropped_feature);
      double sum = 0.0;
      for (int32_t e = 0; e < case_.experts; ++e) {
        const size_t i = static_cast<size_t>(record * case_.experts + e);
        const double want = right[static_cast<size_t>(e)];
        const std::string place = str_cat("record ", record, " expert ", e, ": ");
        if (!(std::fabs(weights[i] - want) <= 1e-5 * want))
          return str_cat(place, "weight ", weights[i], ", expected ", want);
        const int32_t id = !case_.with_ids ? -1 : weights[i] < case_.threshold ? -1 : e;
        if (ids[i] != id) return str_cat(place, "id ", ids[i], ", expected ", id);
        sum += weights[i];
      }
      if (!(std::fabs(sum - 1.0) <= 1e-5)) return str_cat("record ", record, ": weights add to ", sum);
    }
    return "";
  }

  std::vector<float> weights;
  std::vector<int32_t> ids;
  OperandBuffer& h() { return h_; }
  const std::vector<float>& h_values() const { return h_values_; }

 private:
  size_t outputs() const { return static_cast<size_t>(case_.records) * static_cast<size_t>(case_.experts); }

  WeighCase case_;
  OperandBuffer h_;
  std::vector<float> weight_, bias_, h_values_;
  GuardedBuffer device_weight_, device_bias_, device_router_weights_, device_ids_;
};

void expect_right(const WeighCase& c) {
  WeighRun run(c);
  run.run();
  EXPECT_EQ(run.problem(), "") << c;
}

struct CombineCase {
  Operand rows = Operand::f16;
  Operand out = Operand::f32;
  int32_t records = 5;
  int32_t experts = 4;
  int32_t size = 100;
  bool skip = false;  // token_row with holes, rows in another order
  bool bias = true;
  bool relu = true;

  friend std::ostream& operator<<(std::ostream& out, const CombineCase& c) {
    return out << operand_name(c.rows) << " to " << operand_name(c.out) << " N " << c.records << " E " << c.experts
               << " X " << c.size << (c.skip ? " skipping" : "") << (c.bias ? " bias" : "") << (c.relu ? " relu" : "");
  }
};

/// Changes to the reference: what a wrong kernel might compute.
enum class Planted { nothing, first_expert_missing, next_record_weights, relu_flipped };

class CombineRun {
 public:
  explicit CombineRun(const CombineCase& c, uint32_t seed = 1)
      : case_(c),
        rows_(c.rows, num_slots(), c.size, cta::padded_stride(c.size) + 8),
        out_(c.out, c.records, c.size, cta::padded_stride(c.size)),
        token_row_(static_cast<size_t>(num_slots())),
        device_token_row_(token_row_.size() * sizeof(int32_t)),
        device_router_weights_(token_row_.size() * sizeof(float)),
        device_bias_(static_cast<size_t>(c.size) * sizeof(float)) {
    std::mt19937 rng(seed);
    for (size_t i = 0; i < token_row_.size(); ++i) token_row_[i] = static_cast<int32_t>(i);
    std::vector<float> values = normal_values(token_row_.size() * static_cast<size_t>(c.size), 1.0f, rng);
    if (c.skip) {
      std::shuffle(token_row_.begin(), token_row_.end(), rng);
      for (size_t i = 0; i < token_row_.size(); ++i) {
        const bool is_second_record = static_cast<int32_t>(i) / c.experts == 1;  // has no experts at all
        if (!is_second_record && rng() % 3 != 0) continue;
        const auto row = values.begin() + static_cast<int64_t>(token_row_[i]) * c.size;
        std::fill(row, row + c.size, std::numeric_limits<float>::quiet_NaN());
        token_row_[i] = -1;
      }
    }
    rows_.upload(values, /*pad=*/false);
    router_weights_ = normal_values(token_row_.size(), 0.5f, rng);
    bias_ = normal_values(static_cast<size_t>(c.size), 0.5f, rng);
    device_token_row_.upload(token_row_);
    device_router_weights_.upload(router_weights_);
    device_bias_.upload(bias_);
  }

  mixture::CombineArgs args() const {
    mixture::CombineArgs args{};
    args.rows = rows_.view();
    args.token_row = case_.skip ? static_cast<const int32_t*>(device_token_row_.data()) : nullptr;
    args.router_weights = static_cast<const float*>(device_router_weights_.data());
    args.output_bias = case_.bias ? static_cast<const float*>(device_bias_.data()) : nullptr;
    args.relu = case_.relu;
    args.out = out_.view();
    args.num_records = case_.records;
    args.num_experts = case_.experts;
    args.expert_size = case_.size;
    return args;
  }

  void run() {
    out_.poison();
    mixture::combine(args(), nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    out_.fetch();
  }
  OperandBuffer& out() { return out_; }

  /// What is wrong with out(); empty when nothing is.
  std::string problem(Planted planted = Planted::nothing) const {
    for (int32_t record = 0; record < case_.records; ++record) {
      for (int32_t x = 0; x < case_.size; ++x) {
        const double bias = case_.bias ? bias_[static_cast<size_t>(x)] : 0.0;
        double want = bias;
        double magnitude = std::fabs(bias);
        for (int32_t e = planted == Planted::first_expert_missing ? 1 : 0; e < case_.experts; ++e) {
          const auto slot = static_cast<size_t>(record * case_.experts + e);
          if (token_row_[slot] < 0) continue;
          const size_t shift = planted == Planted::next_record_weights ? static_cast<size_t>(case_.experts) : 0;
          const double weight = router_weights_[(slot + shift) % router_weights_.size()];
          const double term = weight * rows_.value(token_row_[slot], x);
          want += term;
          magnitude += std::fabs(term);
        }
        if (case_.relu != (planted == Planted::relu_flipped)) want = std::max(want, 0.0);
        // E + 1 roundings of fp32 in the sum, one to the stored kind.
        const double bound = operand_rounding(case_.out, std::fabs(want)) + (case_.experts + 1) * 0x1p-23 * magnitude;
        if (!(std::fabs(out_.value(record, x) - want) <= bound))
          return str_cat("record ", record, " column ", x, ": got ", out_.value(record, x), ", expected ", want);
      }
    }
    return out_.margin_problem(case_.size, cta::padded_stride(case_.size));
  }

 private:
  int64_t num_slots() const { return static_cast<int64_t>(case_.records) * case_.experts; }

  CombineCase case_;
  OperandBuffer rows_, out_;
  std::vector<int32_t> token_row_;
  std::vector<float> router_weights_, bias_;
  GuardedBuffer device_token_row_, device_router_weights_, device_bias_;
};

void expect_right(const CombineCase& c) {
  CombineRun run(c);
  run.run();
  EXPECT_EQ(run.problem(), "") << c;
}

TEST(ClassifierSmall, Mixture) {
  for (const Operand kind : kKinds) expect_right(WeighCase{.kind = kind, .records = 5, .features = 9, .experts = 5});
  expect_right(WeighCase{.records = 3, .features = 16, .threshold = 0.2f});
  expect_right(CombineCase{.records = 3, .size = 9, .skip = true});
  expect_right(CombineCase{.rows = Operand::f32, .out = Operand::split, .records = 2, .experts = 5, .size = 8});
}

TEST(MixtureWeigh, EveryKindAndShape) {
  for (const Operand kind : kKinds) {
    for (const int32_t experts : {1, 2, 4, 5, 64}) {
      for (const int32_t features : {1, 8, 100, 4096}) {
        expect_right(
            WeighCase{.kind = kind, .records = 6, .features = features, .experts = experts, .threshold = 0.1f});
      }
    }
  }
}

TEST(MixtureWeigh, EveryCountOfRecords) {
  for (const int32_t records : {1, 2, 3, 4, 5, 7, 8, 130})
    expect_right(WeighCase{.records = records, .features = 1032, .experts = 9});
}

TEST(MixtureWeigh, WeightsOfAnyAlignment) {
  expect_right(WeighCase{.features = 4096, .unaligned_weight = true});
  expect_right(WeighCase{.features = 33, .unaligned_weight = true});
}

TEST(MixtureWeigh, WithoutIdsNothingIsWrittenThere) { expect_right(WeighCase{.threshold = 0.5f, .with_ids = false}); }

TEST(MixtureWeigh, ThresholdSkipsSomeExperts) {
  WeighRun run({.records = 64, .experts = 6, .threshold = 0.1f});
  run.run();
  EXPECT_EQ(run.problem(), "");
  const auto skipped = std::count(run.ids.begin(), run.ids.end(), -1);
  EXPECT_GT(skipped, 0);
  EXPECT_LT(skipped, static_cast<int64_t>(run.ids.size()));
}

// exp would overflow without the subtraction of the largest logit.
TEST(MixtureWeigh, LargeLogitsStayFinite) {
  const WeighCase c{.kind = Operand::f32, .records = 4, .features = 8, .experts = 3};
  WeighRun run(c);
  run.h().upload(std::vector<float>(4 * 8, 1000.0f), /*pad=*/true);
  run.run();
  double sum = 0.0;
  for (const float weight : run.weights) {
    EXPECT_TRUE(std::isfinite(weight));
    sum += weight;
  }
  EXPECT_NEAR(sum, c.records, 1e-5);
}

TEST(MixtureWeigh, NanStaysInItsRecord) {
  const WeighCase c{.kind = Operand::f32, .records = 6, .features = 40, .experts = 4};
  WeighRun run(c);
  run.run();
  const std::vector<float> clean = run.weights;
  std::vector<float> values = run.h_values();
  values[2 * 40 + 39] = std::numeric_limits<float>::quiet_NaN();
  run.h().upload(values, /*pad=*/true);
  run.run();
  for (size_t i = 0; i < clean.size(); ++i) {
    if (i / 4 == 2) {
      EXPECT_TRUE(std::isnan(run.weights[i])) << i;
    } else {
      EXPECT_EQ(run.weights[i], clean[i]) << i;
    }
  }
}

TEST(MixtureWeigh, NeighboursDoNotChangeBits) {
  const WeighCase c{.records = 11, .features = 4096, .experts = 5};
  WeighRun batch(c);
  batch.run();
  for (const int32_t record : {0, 3, 10}) {
    WeighCase alone = c;
    alone.records = 1;
    WeighRun single(alone);
    const auto begin = batch.h_values().begin() + static_cast<int64_t>(record) * c.features;
    single.h().upload(std::vector<float>(begin, begin + c.features), /*pad=*/true);
    single.run();
    for (int32_t e = 0; e < c.experts; ++e) {
      EXPECT_EQ(std::bit_cast<uint32_t>(single.weights[static_cast<size_t>(e)]),
                std::bit_cast<uint32_t>(batch.weights[static_cast<size_t>(record * c.experts + e)]))
          << "record " << record << " expert " << e;
    }
  }
}

TEST(MixtureWeigh, EveryRunHasTheSameBits) {
  WeighRun run({.records = 300, .features = 777, .experts = 7});
  run.run();
  const std::vector<float> first = run.weights;
  for (int repeat = 0; repeat < 4; ++repeat) {
    run.run();
    ASSERT_EQ(run.weights, first);  // no NaN among them
  }
}

TEST(MixtureWeigh, TheComparisonSeesErrors) {
  WeighRun run({.records = 6, .features = 100, .threshold = 0.2f});
  run.run();
  ASSERT_EQ(run.problem(), "");
  EXPECT_NE(run.problem(/*dropped_feature=*/99), "");
  const auto weights = run.weights;
  const auto ids = run.ids;
  run.weights[5] *= 1.0001f;
  EXPECT_NE(run.problem(), "");
  run.weights = weights;
  std::swap_ranges(run.weights.begin(), run.weights.begin() + 4, run.weights.begin() + 4);
  EXPECT_NE(run.problem(), "");
  run.weights.assign(weights.size(), 0.0f);
  EXPECT_NE(run.problem(), "");
  run.weights = weights;
  run.ids[7] = ids[7] == -1 ? 3 : -1;
  EXPECT_NE(run.problem(), "");
}

TEST(MixtureWeigh, BadArgumentsAreNamed) {
  const WeighRun run({.records = 2});
  const auto error = [&](const auto& change) {
    mixture::WeighArgs args = run.args();
    change(args);
    return error_of([&] { mixture::weigh(args, nullptr); });
  };
  using Args = mixture::WeighArgs;
  EXPECT_EQ(error([](Args& a) { a.num_records = -1; }).find("weigh num_records"), 0u);
  EXPECT_EQ(error([](Args& a) { a.num_features = 0; }).find("weigh num_features"), 0u);
  EXPECT_EQ(error([](Args& a) { a.num_experts = 65; }).find("weigh num_experts"), 0u);
  EXPECT_EQ(error([](Args& a) { a.num_experts = 0; }).find("weigh num_experts"), 0u);
  EXPECT_EQ(error([](Args& a) { a.h.stride = 96; }).find("weigh h"), 0u);
  EXPECT_EQ(error([](Args& a) { a.weight = nullptr; }).find("weigh weight"), 0u);
  EXPECT_EQ(error([](Args& a) { a.bias = nullptr; }).find("weigh bias"), 0u);
  EXPECT_EQ(error([](Args& a) { a.router_weights = nullptr; }).find("weigh router_weights"), 0u);
  EXPECT_EQ(error([](Args& a) { a = Args{}; }), "no error");  // no records
}

TEST(MixtureCombine, EveryKindAndShape) {
  for (const Operand rows : {Operand::f16, Operand::bf16, Operand::f32}) {
    for (const Operand out : kKinds) {
      for (const int32_t experts : {1, 2, 4, 5, 64}) {
        for (const int32_t size : {1, 7, 8, 100}) {
          expect_right(CombineCase{.rows = rows, .out = out, .experts = experts, .size = size});
          expect_right(CombineCase{.rows = rows, .out = out, .experts = experts, .size = size, .skip = true});
        }
      }
    }
  }
  expect_right(CombineCase{.records = 130, .size = 1024});
}

TEST(MixtureCombine, BiasAndReluAreOptional) {
  for (const bool bias : {false, true}) {
    for (const bool relu : {false, true})
      expect_right(CombineCase{.records = 9, .size = 44, .skip = true, .bias = bias, .relu = relu});
  }
}

TEST(MixtureCombine, RecordWithoutExpertsIsItsBiasOrPlusZero) {
  const CombineCase c{.records = 3, .size = 20, .skip = true, .bias = false, .relu = false};
  CombineRun run(c);
  run.run();
  EXPECT_EQ(run.problem(), "");
  for (int64_t x = 0; x < c.size; ++x) EXPECT_EQ(run.out().bits(0, 1, x), 0u);
}

TEST(MixtureCombine, EveryRunHasTheSameBits) {
  CombineRun run({.records = 200, .size = 100, .skip = true});
  run.run();
  const std::vector<uint8_t> first = run.out().bytes();
  for (int repeat = 0; repeat < 4; ++repeat) {
    run.run();
    ASSERT_EQ(run.out().bytes(), first);
  }
}

TEST(MixtureCombine, TheComparisonSeesErrors) {
  const CombineCase c{.records = 6};
  CombineRun run(c);
  run.run();
  ASSERT_EQ(run.problem(), "");
  for (const Planted planted : {Planted::first_expert_missing, Planted::next_record_weights, Planted::relu_flipped})
    EXPECT_NE(run.problem(planted), "") << static_cast<int>(planted);
  for (int64_t x = 0; x < c.size; ++x) run.out().set_bits(0, 3, x, 0);
  EXPECT_NE(run.problem(), "");
  run.out().fetch();
  for (int64_t x = 0; x < c.size; ++x) run.out().set_bits(0, 1, x, run.out().bits(0, 2, x));
  EXPECT_NE(run.problem(), "");
  run.out().fetch();
  EXPECT_EQ(run.problem(), "");
}

TEST(MixtureCombine, BadArgumentsAreNamed) {
  const CombineRun run({.records = 2});
  const auto error = [&](const auto& change) {
    mixture::CombineArgs args = run.args();
    change(args);
    return error_of([&] { mixture::combine(args, nullptr); });
  };
  using Args = mixture::CombineArgs;
  EXPECT_EQ(error([](Args& a) { a.num_records = -1; }).find("combine num_records"), 0u);
  EXPECT_EQ(error([](Args& a) { a.num_experts = 65; }).find("combine num_experts"), 0u);
  EXPECT_EQ(error([](Args& a) { a.expert_size = 0; }).find("combine expert_size"), 0u);
  EXPECT_EQ(error([](Args& a) { a.rows.kind = Operand::split; }).find("combine rows"), 0u);
  EXPECT_EQ(error([](Args& a) { a.rows.data = nullptr; }).find("combine rows"), 0u);
  EXPECT_EQ(error([](Args& a) { a.out.stride = 96; }).find("combine out"), 0u);
  EXPECT_EQ(error([](Args& a) { a.router_weights = nullptr; }).find("combine router_weights"), 0u);
  EXPECT_EQ(error([](Args& a) { a = Args{}; }), "no error");  // no records
}

}  // namespace
}  // namespace tessera::testing
