// The list of cases itself: names, reasons, what it must contain, and that cases.json says the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <tuple>

#include "moe/battery.h"
#include "moe/formats.h"
#include "moe/routing.h"
#include "tessera/core/error.h"
#include "tessera/moe/limits.h"

namespace tessera::testing {
namespace {

template <class Value>
std::set<Value> values_in_battery(const std::function<Value(const LayerCase&)>& value) {
  std::set<Value> values;
  for (const LayerCase& c : battery()) values.insert(value(c));
  return values;
}

TEST(MoeBattery, EveryCaseHasANameOfItsOwnAndAReason) {
  std::set<std::string> names;
  for (const LayerCase& c : battery()) {
    EXPECT_TRUE(names.insert(c.name).second) << c.name;
    EXPECT_EQ(c.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_"), std::string::npos) << c.name;
    EXPECT_GT(c.why.size(), 10u) << c.name;
    EXPECT_EQ(&find_case(c.name), &c);
  }
  EXPECT_THROW(find_case("tokens_127"), Error);
}

TEST(MoeBattery, HasWhatKernelsGetWrong) {
  const auto tokens = values_in_battery<int32_t>([](const LayerCase& c) { return c.tokens; });
  for (const int32_t t : {0, 1, 2, 7, 8, 31, 32, 33, 64, 65, 127, 128, 129, 300}) EXPECT_TRUE(tokens.contains(t)) << t;
  const auto widths = values_in_battery<int32_t>([](const LayerCase& c) { return c.intermediate; });
  for (const int32_t i : {96, 192, 352, 704, 1408, 2880}) EXPECT_TRUE(widths.contains(i)) << i;
  EXPECT_EQ(*values_in_battery<int32_t>([](const LayerCase& c) { return c.top_k; }).rbegin(), moe::kMaxTopK);
  EXPECT_EQ(*values_in_battery<int32_t>([](const LayerCase& c) { return c.experts; }).rbegin(), moe::kMaxExperts);
  const auto activations = values_in_battery<std::pair<bool, ActivationKind>>([](const LayerCase& c) {
    return std::pair{c.gated, c.activation.kind};
  });
  EXPECT_EQ(activations.size(), 12u);
  EXPECT_EQ(values_in_battery<moe::GateUpOrder>([](const LayerCase& c) { return c.order; }).size(), 3u);
  EXPECT_EQ(values_in_battery<DType>([](const LayerCase& c) { return c.dtype; }).size(), 3u);
  EXPECT_EQ(values_in_battery<DType>([](const LayerCase& c) { return c.topk_weights_dtype; }).size(), 3u);
  const auto count = [](const auto& has) { return std::count_if(battery().begin(), battery().end(), has); };
  EXPECT_GT(count([](const LayerCase& c) { return c.mapped != 0; }), 8);
  EXPECT_GT(count([](const LayerCase& c) { return c.shared_intermediate != 0 && c.shared_weight; }), 8);
  EXPECT_GT(count([](const LayerCase& c) { return c.shared_intermediate > c.intermediate; }), 8);
  EXPECT_GT(count([](const LayerCase& c) { return c.bias; }), 50);
  EXPECT_EQ(values_in_battery<moe::WeightFormat>([](const LayerCase& c) { return c.format; }).size(),
            moe::format_rows().size());
  for (const moe::FormatRow& format : moe::format_rows()) {
    EXPECT_GT(count([&](const LayerCase& c) { return c.format == format.format && runs_on_gpu(c); }), 60)
        << format.name;
  }
  EXPECT_GT(count(runs_on_gpu), 300);
  EXPECT_GT(count(is_exact_on_host), 100);
}

TEST(MoeBattery, ASpreadHasEverySizeAndEveryOptionWithEachType) {
  const std::vector<LayerCase> spread = spread_of(battery());
  EXPECT_LT(spread.size(), battery().size() / 2);
  const auto expect_all_of = [&](const char* what, const auto& value) {
    std::set<decltype(value(spread[0]))> there, wanted;
    for (const LayerCase& c : spread) there.insert(value(c));
    for (const LayerCase& c : battery()) wanted.insert(value(c));
    EXPECT_TRUE(there == wanted) << what << ": " << there.size() << " of " << wanted.size();
  };
  expect_all_of("hidden", [](const LayerCase& c) { return c.hidden; });
  expect_all_of("intermediate", [](const LayerCase& c) { return c.intermediate; });
  expect_all_of("experts", [](const LayerCase& c) { return c.experts; });
  expect_all_of("top_k", [](const LayerCase& c) { return c.top_k; });
  expect_all_of("tokens", [](const LayerCase& c) { return c.tokens; });
  expect_all_of("first_expert", [](const LayerCase& c) { return c.first_expert; });
  expect_all_of("routing", [](const LayerCase& c) { return std::tuple{c.dtype, c.routing}; });
  expect_all_of("activation", [](const LayerCase& c) {
    return std::tuple{c.dtype, c.gated, c.activation.kind, c.bias};
  });
  expect_all_of("order", [](const LayerCase& c) { return std::tuple{c.dtype, c.gated, c.order, c.bias}; });
  expect_all_of("ids", [](const LayerCase& c) { return std::tuple{c.dtype, c.ids_are_64_bit}; });
  expect_all_of("map", [](const LayerCase& c) { return std::tuple{c.dtype, c.gated, c.mapped != 0}; });
  expect_all_of("shared expert", [](const LayerCase& c) {
    return std::tuple{c.dtype, c.shared_intermediate != 0,
                      c.shared_intermediate<c.intermediate, c.shared_intermediate> c.intermediate, c.shared_weight};
  });
  expect_all_of("shared order", [](const LayerCase& c) {
    return std::tuple{c.dtype, c.shared_intermediate != 0, c.order};
  });
  expect_all_of("topk_weights_dtype", [](const LayerCase& c) { return std::tuple{c.dtype, c.topk_weights_dtype}; });
  expect_all_of("integers", [](const LayerCase& c) { return std::tuple{c.dtype, c.integers}; });
  expect_all_of("family", [](const LayerCase& c) { return std::tuple{c.dtype, c.name.substr(0, c.name.find('_'))}; });
}

TEST(MoeBattery, CasesForPythonAreTheList) {
  std::ifstream file(std::string(TESSERA_SOURCE_DIR) + "/tests/moe/cases.json");
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_TRUE(text.str() == battery_json()) << "tests/moe/cases.json is not what moe_cases prints";
}

TEST(MoeRouting, KindsAreWhatTheySay) {
  for (const char* kind : {"balanced", "best", "worst", "random", "zipf", "first", "middle", "last", "few", "any"}) {
    const std::vector<int32_t> ids = make_ids(kind, 50, 4, 16, 3);
    ASSERT_EQ(ids.size(), 200u) << kind;
    EXPECT_TRUE(std::all_of(ids.begin(), ids.end(), [](int32_t id) { return id >= 0 && id < 16; })) << kind;
    EXPECT_EQ(ids, make_ids(kind, 50, 4, 16, 3)) << kind;
    EXPECT_TRUE(make_ids(kind, 0, 4, 16).empty()) << kind;
    EXPECT_EQ(make_ids(kind, 1, 8, 3).size(), 8u) << kind << ": fewer experts than slots, fewer slots than experts";
  }
  const std::vector<int32_t> foreign = make_ids("foreign", 200, 4, 16);
  const std::set<int32_t> seen(foreign.begin(), foreign.end());
  for (const int32_t id : {-1, INT32_MIN, INT32_MAX, 16, 0, 15}) EXPECT_TRUE(seen.contains(id)) << id;
  const std::vector<int32_t> few = make_ids("few", 50, 4, 16);
  EXPECT_EQ((std::set<int32_t>(few.begin(), few.end())), (std::set<int32_t>{0, 1, 2}));
  EXPECT_THROW(make_ids("elsewhere", 1, 1, 1), Error);
  LayerCase shard{.experts = 4, .tokens = 9, .first_expert = 7};
  for (const int32_t id : ids_of(shard)) EXPECT_TRUE(id >= 7 && id < 11) << id;
}

}  // namespace
}  // namespace tessera::testing
