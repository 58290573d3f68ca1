// Outputs of small layers as a GPU gave them, in a text file: what machines without a GPU compare the host model with.
//
//   # GPU name
//   SEED CHECKSUM_OF_INPUTS OUT_IN_HEX        (four digits an element, row after row)
#pragma once

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tessera/core/error.h"

namespace tessera::testing {

inline constexpr const char* kExactRecordFile = "tests/unit/moe/exact_layers.txt";
inline constexpr int kNumRecordedLayers = 64;
inline constexpr int64_t kMaxRecordedElements = 1024;  // of a layer's output: the file stays small

struct ExactRecord {
  uint64_t seed = 0;
  uint64_t checksum = 0;
  std::vector<uint16_t> out;
};

inline std::string exact_record_line(const ExactRecord& record) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%llu %016llx ", static_cast<unsigned long long>(record.seed),
                static_cast<unsigned long long>(record.checksum));
  std::string line = digits;
  for (const uint16_t bits : record.out) {
    std::snprintf(digits, sizeof digits, "%04x", bits);
    line += digits;
  }
  return line + "\n";
}

/// Throws Error for a line that is none.
inline std::vector<ExactRecord> read_exact_records(std::istream& file) {
  std::vector<ExactRecord> records;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    ExactRecord record;
    std::string checksum, digits;
    if (!(words >> record.seed >> checksum >> digits) || digits.size() % 4 != 0)
      throw Error(std::string(kExactRecordFile) + ":" + std::to_string(number), line.substr(0, 40),
                  "SEED CHECKSUM HEX");
    record.checksum = std::stoull(checksum, nullptr, 16);
    for (size_t i = 0; i < digits.size(); i += 4)
      record.out.push_back(static_cast<uint16_t>(std::stoul(digits.substr(i, 4), nullptr, 16)));
    records.push_back(record);
  }
  return records;
}

}  // namespace tessera::testing
