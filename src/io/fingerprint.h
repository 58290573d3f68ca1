// What makes two runs the same work, as names and values: a run is continued, and parts are merged, only where every
// field agrees.
//
//   Fingerprint fingerprint{{"precision", "fp32"}, {"input_bytes", "1024"}};
//   require_equal(fingerprint, found, "labels.csv.journal");
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tessera::io {

struct FingerprintField {
  std::string name;
  std::string value;

  bool operator==(const FingerprintField&) const = default;
};

using Fingerprint = std::vector<FingerprintField>;  ///< names are distinct

/// Throws Error naming `where`, which holds `found`, and the first field that differs from `expected`.
void require_equal(const Fingerprint& expected, const Fingerprint& found, const std::string& where);

/// An object of strings, in the order of the fields, and back. `where` names the file in messages.
nlohmann::ordered_json to_json(const Fingerprint& fingerprint);
Fingerprint fingerprint_from_json(const nlohmann::json& value, const std::string& where);

}  // namespace tessera::io
