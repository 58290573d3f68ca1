// Any bytes as records of a text format: the same records however many are read at a time, each a text that the
// tokenizer takes or an error that a terminal can show.
#pragma once

#include <string>
#include <vector>

#include "io/records.h"
#include "memory_file.h"
#include "tessera/core/error.h"

namespace tessera::fuzz {

/// Every record as "+text" or "-error", and what ended the reading, if anything did, as "!message".
inline std::vector<std::string> records_of(std::string_view content, io::InputFormat format, int64_t at_a_time) {
  const MemoryFile file(content);
  std::vector<std::string> records;
  try {
    io::RecordSource source;
    source.format = format;
    source.path = file.path();
    const auto reader = io::open_records(source);
    io::RecordBatch batch;
    int64_t next = 0;
    while (reader->next(at_a_time, batch)) {
      require(batch.num_records >= 1 && batch.num_records <= at_a_time && batch.first_index == next);
      require(batch.texts.size() == static_cast<size_t>(batch.num_records));
      next += batch.num_records;
      for (size_t i = 0; i < batch.texts.size(); ++i) {
        const std::string& error = batch.errors[i];
        if (error.empty()) {
          require(utf8_first_invalid(batch.texts[i]) == std::string::npos);
          require(batch.texts[i].find('\0') == std::string_view::npos);
        } else {
          require(batch.texts[i].empty());
          check_message(error);
        }
        records.push_back(error.empty() ? "+" + std::string(batch.texts[i]) : "-" + error);
      }
    }
  } catch (const Error& error) {
    check_message(error.what());
    records.push_back("!");  // the file's name is another each time
  }
  for (std::string& record : records) {
    if (record[0] == '-') record = "-";
  }
  return records;
}

inline void check_records(const uint8_t* data, size_t size, io::InputFormat format) {
  const std::string_view content = text_of(data, size);
  const std::vector<std::string> records = records_of(content, format, 1);
  require(records == records_of(content, format, 7));
}

}  // namespace tessera::fuzz
