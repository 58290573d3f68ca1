// Records of text that are in memory already, for the engine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/records.h"

namespace tessera::cli {

class TextListReader : public io::RecordReader {
 public:
  /// `errors` is empty or has an entry a text; a non-empty one is a failed record.
  explicit TextListReader(std::vector<std::string> texts, std::vector<std::string> errors = {});

  bool next(int64_t max_records, io::RecordBatch& batch) override;
  int64_t num_records_hint() const override { return static_cast<int64_t>(texts_.size()); }
  int64_t bytes_read() const override { return 0; }
  int64_t num_bytes_hint() const override { return -1; }

 private:
  std::vector<std::string> texts_;
  std::vector<std::string> errors_;
  size_t next_ = 0;
};

}  // namespace tessera::cli
