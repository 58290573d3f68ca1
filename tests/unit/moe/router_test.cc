// Routing from logits: against sorting and fp64 sums, and the contract for NaN, infinities, ties and bad input.
#include "tessera/moe/router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "cpu/convert.h"
#include "tessera/core/buffer.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/exact_math.h"
#include "unit/numeric_check.h"
#include "unit/random_values.h"

namespace tessera::moe {
namespace {

using test::GuardedArray;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const RouterKind kKinds[] = {RouterKind::softmax_topk, RouterKind::topk_softmax, RouterKind::softmax_topk_renormalize,
                             RouterKind::sigmoid_grouped, RouterKind::sigmoid_renormalize};

struct Routing {
  std::vector<int32_t> ids;
  std::vector<float> weights;
  int32_t num_nan_rows = 0;
};

// Routes into poisoned, guarded memory. `logits` are rounded to the configuration's type on the way.
Routing run(const RouterConfig& config, const std::vector<float>& logits, const std::vector<float>& bias = {}) {
  const auto num_tokens = static_cast<int32_t>(logits.size() / static_cast<size_t>(config.num_experts));
  const auto slots = static_cast<size_t>(num_tokens * config.top_k);
  Buffer<std::byte> typed(logits.size() * dtype_size(config.logits_dtype));
  cpu::from_f32(logits.data(), static_cast<int64_t>(logits.size()), config.logits_dtype, typed.data());
  Buffer<float> aligned_bias(bias.size());
  std::copy(bias.begin(), bias.end(), aligned_bias.begin());
  GuardedArray<int32_t> ids(slots);
  GuardedArray<float> weights(slots);
  Routing routing;
  route(config, {typed.data(), bias.empty() ? nullptr : aligned_bias.data(), ids.data(), weights.data(),
                 &routing.num_nan_rows, num_tokens});
  EXPECT_TRUE(ids.intact());
  EXPECT_TRUE(weights.intact());
  routing.ids.assign(ids.span().begin(), ids.span().end());
  routing.weights.assign(weights.span().begin(), weights.span().end());
  return routing;
}

std::vector<float> as_read(std::vector<float> logits, DType dtype) {
  Buffer<std::byte> typed(logits.size() * dtype_size(dtype));
  cpu::from_f32(logits.data(), static_cast<int64_t>(logits.size()), dtype, typed.data());
  cpu::to_f32(typed.data(), dtype, static_cast<int64_t>(logits.size()), logits.data());
  return logits;
}

// One row of finite logits by sorting; weights in fp64.
void expect_row(const RouterConfig& c, const float* l, const std::vector<float>& bias, const int32_t* ids,
                const float* weights) {
  const bool sigmoid_kind = c.kind == RouterKind::sigmoid_grouped || c.kind == RouterKind::sigmoid_renormalize;
  std::vector<float> score(l, l + c.num_experts);
  const auto order_by = [](const std::vector<float>& values) {
    std::vector<int32_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
    });
    return order;
  };
  std::set<int32_t> open_groups;
  const int32_t group_size = c.num_experts / c.num_groups;
  if (c.kind == RouterKind::sigmoid_grouped) {
    for (size_t i = 0; i < score.size(); ++i) score[i] = exact_sigmoid(score[i]) + (bias.empty() ? 0.0f : bias[i]);
    std::vector<float> group_scores;
    for (int32_t g = 0; g < c.num_groups; ++g) {
      std::vector<float> in_group(score.begin() + g * group_size, score.begin() + (g + 1) * group_size);
      std::sort(in_group.rbegin(), in_group.rend());
      group_scores.push_back(group_size == 1 ? in_group[0] : in_group[0] + in_group[1]);
    }
    const std::vector<int32_t> groups = order_by(group_scores);
    open_groups.insert(groups.begin(), groups.begin() + c.topk_groups);
  } else {
    open_groups.insert(0);
  }
  std::vector<int32_t> chosen;
  for (const int32_t id : order_by(score)) {
    if (open_groups.count(id / group_size) != 0 && static_cast<int32_t>(chosen.size()) < c.top_k) chosen.push_back(id);
  }
  ASSERT_EQ(chosen, std::vector<int32_t>(ids, ids + c.top_k));
  const double largest = *std::max_element(l, l + c.num_experts);
  const auto term = [&](int32_t id) {
    return sigmoid_kind ? 1.0 / (1.0 + std::exp(-double{l[id]})) : std::exp(double{l[id]} - largest);
  };
  double sum = 0;
  if (c.kind == RouterKind::softmax_topk) {
    for (int32_t id = 0; id < c.num_experts; ++id) sum += term(id);
  } else {
    for (const int32_t id : chosen) sum += term(id);
  }
  for (size_t slot = 0; slot < chosen.size(); ++slot) {
    const double expected = term(chosen[slot]) / sum * c.scale;
    // The difference from the largest logit is rounded before exp: its size counts.
    const double units = 12.0 + (sigmoid_kind ? 0.0 : largest - l[chosen[slot]]);
    EXPECT_NEAR(weights[slot], expected, units * 0x1p-24 * std::abs(expected) + 1e-37) << "slot " << slot;
  }
}

void expect_right(RouterConfig config, int num_tokens, float scale, uint64_t seed) {
  const auto experts = static_cast<size_t>(config.num_experts);
  const std::vector<float> logits =
      as_read(test::random_normal(experts * static_cast<size_t>(num_tokens), scale, seed), config.logits_dtype);
  std::vector<float> bias;
  if (config.kind == RouterKind::sigmoid_grouped && seed % 2 == 0) bias = test::random_normal(experts, 0.3f, seed + 1);
  const Routing routing = run(config, logits, bias);
  for (int token = 0; token < num_tokens; ++token) {
    expect_row(config, logits.data() + static_cast<size_t>(token) * experts, bias,
               routing.ids.data() + token * config.top_k, routing.weights.data() + token * config.top_k);
  }
  EXPECT_EQ(routing.num_nan_rows, 0);
}

TEST(Router, EveryKindAgainstSorting) {
  uint64_t seed = 0;
  for (const RouterKind kind : kKinds) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const int experts : {1, 2, 3, 8, 31, 32, 33, 60, 64, 65, 128, 256, 1024}) {
        for (const int top_k : {1, 2, 8, 31, 32}) {
          if (top_k > experts) continue;
          expect_right({.kind = kind,
                        .num_experts = experts,
                        .top_k = top_k,
                        .scale = seed % 3 == 0 ? 2.5f : 1.0f,
                        .logits_dtype = dtype},
                       7, seed % 4 == 0 ? 30.0f : 2.0f, seed);
          ++seed;
        }
      }
    }
  }
}

TEST(Router, Groups) {
  uint64_t seed = 0;
  struct Case {
    int experts, groups, open, top_k;
  };
  for (const Case& c : {Case{256, 8, 4, 8},
                        {256, 8, 1, 32},
                        {64, 64, 8, 8},
                        {60, 12, 3, 6},
                        {6, 3, 2, 4},
                        {8, 8, 8, 8},
                        {1024, 512, 16, 32},
                        {3, 1, 1, 3}}) {
    for (int repeat = 0; repeat < 6; ++repeat) {
      expect_right({.kind = RouterKind::sigmoid_grouped,
                    .num_experts = c.experts,
                    .top_k = c.top_k,
                    .num_groups = c.groups,
                    .topk_groups = c.open,
                    .scale = 2.5f,
                    .logits_dtype = DType::bf16},
                   20, 1.0f, ++seed);
    }
  }
}

// DeepSeek-V3's rule by hand: the bias moves the choice, not the weights.
TEST(Router, BiasChoosesAndDoesNotWeigh) {
  const RouterConfig config{.kind = RouterKind::sigmoid_grouped,
                            .num_experts = 4,
                            .top_k = 2,
                            .num_groups = 2,
                            .topk_groups = 1,
                            .scale = 4.0f};
  // Without bias group 0 wins; the bias makes expert 3, and with it group 1, the choice.
  const std::vector<float> logits = {2.0f, 1.0f, 0.0f, 0.0f};
  EXPECT_EQ(run(config, logits).ids, (std::vector<int32_t>{0, 1}));
  const Routing routing = run(config, logits, {0.0f, 0.0f, 0.0f, 9.0f});
  EXPECT_EQ(routing.ids, (std::vector<int32_t>{3, 2}));
  EXPECT_EQ(routing.weights, (std::vector<float>{2.0f, 2.0f}));
}

TEST(Router, TiesGoToTheLowestId) {
  for (const RouterKind kind : kKinds) {
    const Routing routing = run({.kind = kind, .num_experts = 6, .top_k = 4}, {0.0f, 1.0f, -0.0f, 1.0f, 0.0f, -3.0f});
    EXPECT_EQ(routing.ids, (std::vector<int32_t>{1, 3, 0, 2}));
    EXPECT_EQ(run({.kind = kind, .num_experts = 70, .top_k = 32}, std::vector<float>(70, 0.25f)).ids[31], 31);
  }
}

TEST(Router, RenormalisedWeightsAddUpToScale) {
  for (const RouterKind kind : kKinds) {
    if (kind == RouterKind::softmax_topk) continue;
    const Routing routing =
        run({.kind = kind, .num_experts = 64, .top_k = 8, .scale = 2.5f}, test::random_normal(64 * 50, 3.0f, 1));
    for (size_t token = 0; token < 50; ++token) {
      EXPECT_NEAR(std::accumulate(&routing.weights[token * 8], &routing.weights[token * 8] + 8, 0.0), 2.5, 2e-6);
      EXPECT_TRUE(std::is_sorted(&routing.weights[token * 8], &routing.weights[token * 8] + 8, std::greater<>()) ||
                  kind == RouterKind::sigmoid_grouped);
    }
  }
}

// D1, D3, D5: rows of NaN, partly NaN, infinite. Ids stay distinct and in range, and no other row changes by a bit.
TEST(Router, D1_NanAndInfiniteRowsHarmNoOther) {
  for (const RouterKind kind : kKinds) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      RouterConfig config{.kind = kind, .num_experts = 24, .top_k = 8, .logits_dtype = dtype};
      if (kind == RouterKind::sigmoid_grouped) config.num_groups = 6, config.topk_groups = 3;
      const std::vector<float> clean = test::random_normal(24 * 40, 2.0f, 3);
      std::vector<float> dirty = clean;
      for (size_t i = 0; i < 24; ++i) {
        dirty[24 * 3 + i] = kNan;
        dirty[24 * 9 + i] = i % 2 == 0 ? kNan : dirty[24 * 9 + i];
        dirty[24 * 10 + i] = kInf;
        dirty[24 * 11 + i] = -kInf;
        dirty[24 * 12 + i] = i % 3 == 0 ? kNan : i % 3 == 1 ? kInf : -kInf;
        dirty[24 * 39 + i] = -kNan;
      }
      const Routing expected = run(config, clean);
      const Routing got = run(config, dirty);
      EXPECT_EQ(got.num_nan_rows, 2);
      for (size_t token = 0; token < 40; ++token) {
        const int32_t* ids = &got.ids[token * 8];
        EXPECT_EQ(std::set<int32_t>(ids, ids + 8).size(), 8u);
        EXPECT_TRUE(std::all_of(ids, ids + 8, [](int32_t id) { return id >= 0 && id < 24; }));
        if (token == 3 || token == 39) {
          for (int32_t slot = 0; slot < 8; ++slot) {
            EXPECT_EQ(ids[slot], slot);
            EXPECT_EQ(std::bit_cast<uint32_t>(got.weights[token * 8 + static_cast<size_t>(slot)]), 0x7FC00000u);
          }
        } else if (token < 9 || token > 12) {
          EXPECT_EQ(std::memcmp(ids, &expected.ids[token * 8], 8 * sizeof(int32_t)), 0);
          EXPECT_EQ(std::memcmp(&got.weights[token * 8], &expected.weights[token * 8], 8 * sizeof(float)), 0);
        }
      }
    }
  }
}

TEST(Router, D3_NanSortsLastAndKeepsItsNan) {
  for (const RouterKind kind : kKinds) {
    const Routing routing = run({.kind = kind, .num_experts = 5, .top_k = 4}, {kNan, 1.0f, kNan, 1.0f, kNan});
    EXPECT_EQ(routing.ids, (std::vector<int32_t>{1, 3, 0, 2}));
    EXPECT_EQ(routing.weights[0], 0.5f);
    EXPECT_EQ(routing.weights[1], 0.5f);
    EXPECT_TRUE(std::isnan(routing.weights[2]) && std::isnan(routing.weights[3]));
    EXPECT_EQ(routing.num_nan_rows, 0);
  }
}

TEST(Router, Infinities) {
  for (const RouterKind kind : kKinds) {
    const bool softmax = kind != RouterKind::sigmoid_grouped && kind != RouterKind::sigmoid_renormalize;
    const Routing high = run({.kind = kind, .num_experts = 4, .top_k = 3}, {1.0f, kInf, -kInf, kInf});
    EXPECT_EQ(high.ids, (std::vector<int32_t>{1, 3, 0}));
    if (softmax) {
      EXPECT_EQ(high.weights, (std::vector<float>{0.5f, 0.5f, 0.0f}));
    }
    EXPECT_TRUE(std::isfinite(high.weights[0]) && high.weights[0] == high.weights[1]);
    const Routing low = run({.kind = kind, .num_experts = 4, .top_k = 2}, std::vector<float>(4, -kInf));
    EXPECT_EQ(low.ids, (std::vector<int32_t>{0, 1}));
    const float each = !softmax ? 0.0f : kind == RouterKind::softmax_topk ? 0.25f : 0.5f;
    EXPECT_EQ(low.weights, (std::vector<float>{each, each}));
  }
  // The differences of such logits overflow, which must be a zero weight and nothing else.
  const float huge = std::numeric_limits<float>::max();
  const Routing routing = run({.num_experts = 2, .top_k = 2}, {-huge, huge});
  EXPECT_EQ(routing.ids, (std::vector<int32_t>{1, 0}));
  EXPECT_EQ(routing.weights, (std::vector<float>{1.0f, 0.0f}));
}

TEST(Router, NanBiasIsChosenLast) {
  const Routing routing =
      run({.kind = RouterKind::sigmoid_grouped, .num_experts = 4, .top_k = 3, .num_groups = 2, .topk_groups = 2},
          {3.0f, 0.0f, 0.0f, 0.0f}, {kNan, 0.0f, kInf, -kInf});
  EXPECT_EQ(routing.ids, (std::vector<int32_t>{2, 1, 3}));
  EXPECT_TRUE(std::all_of(routing.weights.begin(), routing.weights.end(), [](float w) { return std::isfinite(w); }));
}

TEST(Router, NoTokensTouchNothing) {
  route({.num_experts = 4, .top_k = 2}, {});
  EXPECT_TRUE(run({.num_experts = 4, .top_k = 2}, {}).ids.empty());
}

TEST(Router, CountIsAddedTo) {
  Buffer<float> logits(4);
  std::fill(logits.begin(), logits.end(), kNan);
  int32_t ids[4];
  float weights[4];
  int32_t count = 40;
  route({.num_experts = 2, .top_k = 2}, {logits.data(), nullptr, ids, weights, &count, 2});
  EXPECT_EQ(count, 42);
}

std::string message(const RouterConfig& config) {
  try {
    validate(config);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Router, RejectsConfigurationsByName) {
  const RouterConfig good{
      .kind = RouterKind::sigmoid_grouped, .num_experts = 8, .top_k = 2, .num_groups = 4, .topk_groups = 2};
  EXPECT_EQ(message(good), "accepted");
  const auto with = [&](auto change) {
    RouterConfig config = good;
    change(config);
    return message(config);
  };
  EXPECT_EQ(with([](auto& c) { c.num_experts = 0; }), "num_experts: got 0, expected 1..1024");
  EXPECT_EQ(with([](auto& c) { c.num_experts = 1025; }), "num_experts: got 1025, expected 1..1024");
  EXPECT_EQ(with([](auto& c) { c.top_k = 0; }), "top_k: got 0, expected 1..8");
  EXPECT_EQ(with([](auto& c) { c.top_k = 9; }), "top_k: got 9, expected 1..8");
  EXPECT_EQ(with([](auto& c) { c.top_k = 5; }), "top_k: got 5, expected at most 4, what topk_groups groups hold");
  EXPECT_EQ(with([](auto& c) { c.num_groups = 3; }), "num_groups: got 3, expected a divisor of num_experts = 8");
  EXPECT_EQ(with([](auto& c) { c.topk_groups = 5; }), "topk_groups: got 5, expected 1..4");
  EXPECT_EQ(with([](auto& c) { c.topk_groups = 0; }), "topk_groups: got 0, expected 1..4");
  EXPECT_EQ(with([](auto& c) { c.scale = kInf; }), "scale: got inf, expected a finite number");
  EXPECT_EQ(with([](auto& c) { c.kind = static_cast<RouterKind>(5); }), "router kind: got 5, expected 0..4");
  EXPECT_EQ(with([](auto& c) { c.kind = RouterKind::topk_softmax; }),
            "num_groups: got 4, expected 1: only sigmoid_grouped has groups");
  EXPECT_EQ(message({.num_experts = 1024, .top_k = 33}), "top_k: got 33, expected 1..32");
}

TEST(Router, RejectsArgumentsByName) {
  Buffer<float> memory(64);
  const RouterConfig config{.num_experts = 4, .top_k = 2};
  const RouterInputs good{memory.data(),      nullptr, reinterpret_cast<int32_t*>(memory.data() + 16),
                          memory.data() + 32, nullptr, 1};
  const auto with = [&](auto change) {
    RouterInputs inputs = good;
    change(inputs);
    try {
      route(config, inputs);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const auto shifted = [](auto*& pointer, int bytes) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(reinterpret_cast<uintptr_t>(pointer) +
                                                                           static_cast<uintptr_t>(bytes));
  };
  EXPECT_EQ(with([](auto&) {}), "accepted");
  EXPECT_EQ(with([](auto& in) { in.logits = nullptr; }), "logits: got a null pointer, expected host memory");
  EXPECT_EQ(with([&](auto& in) { shifted(in.logits, 8); }),
            "logits: got a misaligned pointer, expected 16-byte alignment");
  EXPECT_EQ(with([&](auto& in) { in.bias = memory.data(); }),
            "bias: got a pointer, expected null: only sigmoid_grouped has a bias");
  EXPECT_EQ(with([](auto& in) { in.topk_ids = nullptr; }), "topk_ids: got a null pointer, expected host memory");
  EXPECT_EQ(with([&](auto& in) { shifted(in.topk_ids, 2); }),
            "topk_ids: got a misaligned pointer, expected 4-byte alignment");
  EXPECT_EQ(with([](auto& in) { in.topk_weights = nullptr; }),
            "topk_weights: got a null pointer, expected host memory");
  EXPECT_EQ(with([](auto& in) { in.num_tokens = -1; }), "num_tokens: got -1, expected 0..536870911");
  EXPECT_EQ(with([&](auto& in) {
              in.num_nan_rows = in.topk_ids;
              shifted(in.num_nan_rows, 1);
            }),
            "num_nan_rows: got a misaligned pointer, expected 4-byte alignment");
}

}  // namespace
}  // namespace tessera::moe
