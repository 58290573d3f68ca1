// What every `tessera bench` command does with its cases: text as they end, and the same as JSON.
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "output.h"
#include "side_file.h"
#include "text_format.h"

namespace tessera::cli {

/// The machine in name and value.
inline void report_machine(const std::vector<std::pair<std::string, std::string>>& description, Output& output,
                           nlohmann::ordered_json& json) {
  for (const auto& [name, value] : description) {
    output.write(labelled(name, value));
    json["machine"][name] = value;
  }
}

/// JSON has no infinity.
inline nlohmann::ordered_json finite_json(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

/// Measures the cases one after the other; a long run shows what it has. False if a result was wrong.
template <class Bench, class Case, class Text, class Json>
bool measure_cases(Bench& bench, const std::vector<Case>& cases, const Text& text, const Json& to_json, Output& output,
                   nlohmann::ordered_json& json) {
  bool all_right = true;
  json["cases"] = nlohmann::ordered_json::array();
  for (const Case& asked : cases) {
    const auto result = bench.measure(asked);
    output.write("\n" + text(asked, result));
    output.flush();
    json["cases"].push_back(to_json(asked, result));
    all_right = all_right && result.check.passed();
  }
  return all_right;
}

/// Ends both outputs.
inline void finish_report(Output& output, SideFile& file, const nlohmann::ordered_json& json) {
  output.commit();
  file.write(json.dump(1) + "\n");
}

}  // namespace tessera::cli
