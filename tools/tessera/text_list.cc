#include "text_list.h"

#include <algorithm>
#include <utility>

#include "tessera/core/check.h"

namespace tessera::cli {

TextListReader::TextListReader(std::vector<std::string> texts, std::vector<std::string> errors)
    : texts_(std::move(texts)), errors_(std::move(errors)) {
  errors_.resize(texts_.size());
}

bool TextListReader::next(int64_t max_records, io::RecordBatch& batch) {
  TESSERA_CHECK(max_records >= 1, max_records);
  const size_t count = std::min(static_cast<size_t>(max_records), texts_.size() - next_);
  batch.first_index = static_cast<int64_t>(next_);
  batch.num_records = static_cast<int64_t>(count);
  const auto first = static_cast<std::ptrdiff_t>(next_);
  next_ += count;
  const auto last = static_cast<std::ptrdiff_t>(next_);
  batch.texts.assign(texts_.begin() + first, texts_.begin() + last);
  batch.errors.assign(errors_.begin() + first, errors_.begin() + last);
  return count > 0;
}

}  // namespace tessera::cli
