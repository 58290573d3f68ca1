#include "classify_report.h"

#include <cmath>

#include "bench_report.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "text_format.h"

namespace tessera::cli {
namespace {

constexpr size_t kIndent = 18;

/// 1234567 as "1,234,567".
std::string grouped(double value) {
  std::string digits = format_text("%.0f", value);
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3) digits.insert(static_cast<size_t>(i), ",");
  return digits;
}

std::string line(const std::string& label, const std::string& text) { return labelled("  " + label, text, kIndent); }

/// ", 415 TFLOP/s"; nothing for ids, whose table has most of the products done.
std::string flops_text(Path path, double rate, const ClassifyMachine& machine) {
  const double flops = rate * static_cast<double>(machine.flops_per_sentence);
  if (path == Path::ids) return "";
  return flops >= 1e12 ? format_text(", %.0f TFLOP/s", flops / 1e12) : format_text(", %.1f GFLOP/s", flops / 1e9);
}

std::string rate_text(double units_a_second, const std::string& unit) {
  return unit == "FLOP" ? format_text("%.0f TFLOP/s", units_a_second / 1e12)
                        : format_text("%.1f GB/s", units_a_second / 1e9);
}

std::string limit_text(const ClassifyResult& result) {
  if (!result.limit) return result.why_no_limit;
  const Limit& limit = *result.limit;
  return limit.what + ": " + rate_text(limit.rate.median, limit.unit) +
         format_text("; reached %.3f (%.3f..%.3f) of it, %s", limit.fraction.median, limit.fraction.low,
                     limit.fraction.high, rate_text(result.rate.median * limit.per_sentence, limit.unit).c_str());
}

std::string states_text(const ClassifyResult& result) {
  std::string text;
  for (const DeviceState& state : result.states)
    text += format_text("%s%.0f MHz %.0f W", text.empty() ? "" : ", ", state.sm_mhz, state.watts);
  return text;
}

std::string check_text(const ClassifyCheck& check) {
  return format_text("off by at most %.2g of %.2g on %lld records; runs %s bit for bit: %s", check.largest_error,
                     check.bound, static_cast<long long>(check.num_records), check.bits_agree ? "agree" : "DIFFER",
                     check.passed() ? "ok" : "FAILED");
}

nlohmann::ordered_json spread_json(const Spread& spread) {
  return {{"median", spread.median}, {"min", spread.low}, {"max", spread.high}};
}

nlohmann::ordered_json limit_json(const Limit& limit, double rate) {
  return {{"what", limit.what},
          {"unit", limit.unit},
          {"per_sentence", limit.per_sentence},
          {"rate", spread_json(limit.rate)},
          {"sentences_per_second", limit.rate.median / limit.per_sentence},
          {"reached_rate", rate * limit.per_sentence},
          {"fraction", spread_json(limit.fraction)}};
}

}  // namespace

std::string path_name(Path path) {
  switch (path) {
    case Path::embeddings: return "embeddings";
    case Path::resident: return "resident";
    case Path::ids: return "ids";
  }
  return "?";
}

std::string classify_result_text(const ClassifyCase& asked, const ClassifyResult& result,
                                 const ClassifyMachine& machine) {
  const Spread& seconds = result.latency_seconds;
  const auto count = static_cast<double>(result.num_sentences);
  std::string text =
      path_name(asked.path) + ", " + precision_name(asked.precision) + ", form " + form_name(asked.form) + "\n";
  text += line("classifier", escaped(result.description, 400));
  const std::string memory = format_text(", %d lanes on each GPU, %.0f MiB of it", result.num_lanes,
                                         static_cast<double>(result.device_bytes) / 1048576.0);
  text += line("set up", format_text("%.1f s", result.setup_seconds) + (machine.devices.empty() ? "" : memory));
  text += line(grouped(count) + " at once",
               format_text("%.2f ms (%.2f..%.2f), %s sentences/s", seconds.median * 1e3, seconds.low * 1e3,
                           seconds.high * 1e3, grouped(count / seconds.median).c_str()));
  text += line("sustained",
               format_text("%s sentences/s (%s..%s)%s, %d blocks of %.1f s", grouped(result.rate.median).c_str(),
                           grouped(result.rate.low).c_str(), grouped(result.rate.high).c_str(),
                           flops_text(asked.path, result.rate.median, machine).c_str(), result.num_blocks,
                           result.seconds_a_block));
  text += line("limit", limit_text(result));
  if (!result.states.empty()) text += line("clock, power", states_text(result));
  return text + line("check", check_text(result.check));
}

nlohmann::ordered_json classify_result_json(const ClassifyCase& asked, const ClassifyResult& result,
                                            const ClassifyMachine& machine) {
  const auto count = static_cast<double>(result.num_sentences);
  const auto flops = static_cast<double>(machine.flops_per_sentence);
  nlohmann::ordered_json json = {{"path", path_name(asked.path)},
                                 {"precision", precision_name(asked.precision)},
                                 {"form", form_name(asked.form)},
                                 {"description", result.description},
                                 {"setup_seconds", result.setup_seconds},
                                 {"device_bytes", result.device_bytes},
                                 {"lanes", result.num_lanes},
                                 {"latency",
                                  {{"sentences", result.num_sentences},
                                   {"seconds", spread_json(result.latency_seconds)},
                                   {"sentences_per_second", count / result.latency_seconds.median}}},
                                 {"sustained",
                                  {{"blocks", result.num_blocks},
                                   {"seconds_a_block", result.seconds_a_block},
                                   {"sentences_per_second", spread_json(result.rate)}}}};
  if (asked.path != Path::ids) json["sustained"]["flops_per_second"] = result.rate.median * flops;
  if (result.limit) json["limit"] = limit_json(*result.limit, result.rate.median);
  for (const DeviceState& state : result.states)
    json["states"].push_back({{"sm_mhz", state.sm_mhz}, {"watts", state.watts}});
  json["check"] = {{"records", result.check.num_records},
                   {"largest_error", finite_json(result.check.largest_error)},
                   {"bound", result.check.bound},
                   {"bits_agree", result.check.bits_agree},
                   {"passed", result.check.passed()}};
  return json;
}

}  // namespace tessera::cli
