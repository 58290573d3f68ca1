#include "moe/routing.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <random>

#include "tessera/core/error.h"
#include "tessera/moe/presets.h"

namespace tessera::testing {
namespace {

// The product's generators want k <= E, and at least one slot for each expert of `worst`; tests also want less.
std::vector<int32_t> preset_ids(std::string_view kind, int32_t tokens, int32_t top_k, int32_t experts, uint64_t seed) {
  const moe::Routing routing = moe::parse_routing(kind, "routing");
  int32_t among = std::max(experts, top_k);
  if (routing == moe::Routing::worst) among = static_cast<int32_t>(std::min<int64_t>(among, int64_t{tokens} * top_k));
  std::vector<int32_t> ids = moe::make_topk_ids(routing, tokens, among, top_k, seed);
  for (int32_t& id : ids) id %= experts;
  return ids;
}

}  // namespace

std::vector<int32_t> make_ids(std::string_view kind, int32_t tokens, int32_t top_k, int32_t experts, uint64_t seed) {
  if (tokens == 0) return {};
  const auto count = static_cast<size_t>(tokens) * static_cast<size_t>(top_k);
  std::mt19937_64 random(seed);
  const auto below = [&](int32_t end) { return static_cast<int32_t>(random() % static_cast<uint64_t>(end)); };
  const auto drawn = [&](const auto& draw) {
    std::vector<int32_t> ids(count);
    std::generate(ids.begin(), ids.end(), draw);
    return ids;
  };
  if (kind == "none") return std::vector<int32_t>(count, -1);
  if (kind == "first") return std::vector<int32_t>(count, 0);
  if (kind == "last") return std::vector<int32_t>(count, experts - 1);
  if (kind == "middle") return std::vector<int32_t>(count, experts / 2);
  if (kind == "few") return drawn([&] { return below(std::min(experts, 3)); });
  if (kind == "any") return drawn([&] { return below(experts); });
  if (kind == "foreign") {
    using Limits = std::numeric_limits<int32_t>;
    return drawn([&] {
      const std::array<int32_t, 5> nobody = {-1, Limits::min(), Limits::max(), experts, -1 - below(9)};
      return below(2) == 0 ? nobody[static_cast<size_t>(below(5))] : below(experts);
    });
  }
  return preset_ids(kind, tokens, top_k, experts, seed);
}

std::vector<int32_t> ids_of(const LayerCase& c, uint64_t seed) {
  std::vector<int32_t> ids = make_ids(c.routing, c.tokens, c.top_k, c.mapped == 0 ? c.experts : c.mapped, seed);
  // Foreign ids stay as they are: with a shard that begins later, those in front of it are foreign too.
  if (c.mapped != 0 || c.routing == "foreign") return ids;
  for (int32_t& id : ids) id += id < 0 ? 0 : c.first_expert;
  return ids;
}

}  // namespace tessera::testing
