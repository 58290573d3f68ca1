#include "io/fingerprint.h"

#include <algorithm>

#include "io/quote.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

const std::string* find_value(const Fingerprint& fingerprint, const std::string& name) {
  const auto found = std::find_if(fingerprint.begin(), fingerprint.end(),
                                  [&](const FingerprintField& field) { return field.name == name; });
  return found == fingerprint.end() ? nullptr : &found->value;
}

std::string shown(const std::string* value) { return value == nullptr ? "nothing" : quote(*value); }

}  // namespace

void require_equal(const Fingerprint& expected, const Fingerprint& found, const std::string& where) {
  const auto compare = [&](const std::string& name) {
    const std::string* const got = find_value(found, name);
    const std::string* const wanted = find_value(expected, name);
    if (got == nullptr || wanted == nullptr || *got != *wanted) {
      throw Error(where + ": made by another run: " + quote(name), shown(got), shown(wanted));
    }
  };
  for (const FingerprintField& field : expected) compare(field.name);
  for (const FingerprintField& field : found) compare(field.name);
}

nlohmann::ordered_json to_json(const Fingerprint& fingerprint) {
  nlohmann::ordered_json object = nlohmann::ordered_json::object();
  for (const FingerprintField& field : fingerprint) object[field.name] = field.value;
  return object;
}

Fingerprint fingerprint_from_json(const nlohmann::json& value, const std::string& where) {
  const std::string place = where + ": 'fingerprint'";
  if (!value.is_object()) throw Error(place, "no object", "an object of strings");
  Fingerprint fingerprint;
  for (const auto& [name, member] : value.items()) {
    if (!member.is_string()) throw Error(place + ": " + quote(name), "no string", "a string");
    fingerprint.push_back({name, member.get<std::string>()});
  }
  return fingerprint;
}

}  // namespace tessera::io
